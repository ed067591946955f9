"""Keep the last and the best state of a run, to resume from and to end with."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from llm_arch.callbacks.monitor import monitor_of, validates
from llm_arch.checkpoints import SUFFIX, sync_folder
from llm_arch.types import UserError

LAST, PREVIOUS, _NEXT = (f"{name}{SUFFIX}" for name in ("last", "previous", "next"))


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint on the metric the head names, in the output directory.

    `last.ckpt` is the state after the last epoch, or the last validation within one, however good it is (Lightning's
    own `save_last` writes it only together with one of the best), and `previous.ckpt` the one before, in case a disk
    loses something. With `every_minutes` the last state is kept more often than that.

    Args:
        monitor: a logged value such as `val/loss`; None for `val/` and the head's major metric.
        mode: `min` or `max`; None for the head's own.
        save_top_k: how many of the best to keep; -1 for all.
        every_minutes: keep the last state at the first step that ends so many minutes after it was kept before; None
            for validations and ends of epochs alone.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        *,
        save_top_k: int = 1,
        every_minutes: float | None = None,
    ) -> None:
        super().__init__(save_top_k=1)
        if every_minutes is not None and not every_minutes > 0:
            raise UserError(f"every_minutes must be above 0, got {every_minutes}")
        self._given = monitor, mode
        self._top_k = save_top_k
        self.every_minutes = every_minutes
        self._kept = 0.0
        self._best_of_now: Path | None = None  # what was written within the hook that is running

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask the head what to follow, and the trainer where to write."""
        if stage == "fit":
            monitor, mode = monitor_of(pl_module, *self._given)
            # Its constructor derives everything from the mode, so it is run again now that the mode is known.
            ModelCheckpoint.__init__(
                self,
                dirpath=f"{trainer.default_root_dir}/checkpoints",
                filename="epoch{epoch:03d}-step{step:06d}",
                auto_insert_metric_name=False,
                monitor=monitor if validates(trainer) else None,
                mode=mode,
                save_top_k=self._top_k if validates(trainer) else 0,
                enable_version_counter=False,
            )
            self.last_model_path = str(Path(str(self.dirpath)) / LAST)  # part of the state
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._kept = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the last state where it is time and a step has ended; all ranks go by the clock of the first."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # With the last step of an epoch the epoch ends, and then the state is kept anyway: one saved here would count
        # the epoch twice if the resumed run were stopped again.
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self.every_minutes is None or last or not step_has_ended(trainer):
            return
        due = time.monotonic() - self._kept >= 60 * self.every_minutes
        if trainer.strategy.broadcast(due) if trainer.world_size > 1 else due:
            self.keep_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best, once the model has its final shape; within an epoch the last too."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not step_has_ended(trainer):
            return
        self._best_of_now = None
        if not getattr(pl_module, "changing", False):
            super().on_validation_end(trainer, pl_module)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.keep_last(trainer, self._best_of_now)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last, validated or not."""
        self._best_of_now = None
        # An epoch that max_steps cut short before any validation has nothing to compare.
        seen = any(name.startswith("val/") for name in trainer.callback_metrics) or not validates(trainer)
        if seen and not getattr(pl_module, "changing", False):
            super().on_train_epoch_end(trainer, pl_module)
        if step_has_ended(trainer):
            self.keep_last(trainer, self._best_of_now)

    def keep_last(self, trainer: L.Trainer, same: Path | None = None) -> None:
        """Write the state of this moment, which must be the end of a step, as the last one.

        Args:
            trainer: the trainer.
            same: a file that holds it already, which then has two names.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(str(self.dirpath))
        last, coming = folder / LAST, folder / _NEXT
        if not self._linked(trainer, same, coming):
            trainer.save_checkpoint(coming, weights_only=False)
        if trainer.is_global_zero:
            # Whenever the process is killed, two whole ones lie here under names that `--resume auto` looks for.
            if last.exists():
                os.replace(last, folder / PREVIOUS)
            os.replace(coming, last)
            sync_folder(folder)
        self._kept = time.monotonic()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._best_of_now = Path(filepath)

    def _linked(self, trainer: L.Trainer, same: Path | None, coming: Path) -> bool:
        if same is None:
            return False
        linked = True
        if trainer.is_global_zero:
            try:
                coming.unlink(missing_ok=True)
                os.link(same, coming)
            except OSError:  # a folder, as some strategies write, or a file system that knows no such links
                linked = False
        return bool(trainer.strategy.broadcast(linked)) if trainer.world_size > 1 else linked


def step_has_ended(trainer: L.Trainer) -> bool:
    """Whether no gradient is waiting for more micro-batches: it would not be part of the checkpoint."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready % trainer.accumulate_grad_batches == 0
