"""Keep the last and the best state of a run, to resume from and to end with."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from llm_arch.callbacks.monitor import monitor_of, validates


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint on the metric the head names, in the output directory.

    `last.ckpt` is the state after the last epoch, or the last validation within one, however good it is (Lightning's
    own `save_last` writes it only together with one of the best).

    Args:
        monitor: a logged value such as `val/loss`; None for `val/` and the head's major metric.
        mode: `min` or `max`; None for the head's own.
        save_top_k: how many of the best to keep; -1 for all.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, *, save_top_k: int = 1) -> None:
        super().__init__(save_top_k=1)
        self._given = monitor, mode
        self._top_k = save_top_k

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
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best; within an epoch the last too."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not _step_has_ended(trainer):
            return
        super().on_validation_end(trainer, pl_module)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last, validated or not."""
        # An epoch that max_steps cut short before any validation has nothing to compare.
        if any(name.startswith("val/") for name in trainer.callback_metrics) or not validates(trainer):
            super().on_train_epoch_end(trainer, pl_module)
        if _step_has_ended(trainer):
            self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(str(self.dirpath)) / "last.ckpt"
        self.last_model_path = str(path)  # before saving, since it is part of the state
        # A run that is killed while it writes must find the one before.
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, path)


def _step_has_ended(trainer: L.Trainer) -> bool:
    """Whether no gradient is waiting for more micro-batches: it would not be part of the checkpoint."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready % trainer.accumulate_grad_batches == 0
