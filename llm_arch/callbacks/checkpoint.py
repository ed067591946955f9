"""Keep the last and the best state of a run, to resume from and to end with."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from llm_arch.callbacks.monitor import monitor_of, validates


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint on the metric the head names, in the output directory.

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
                save_last=True,
                save_top_k=self._top_k if validates(trainer) else 0,
                enable_version_counter=False,
            )
        super().setup(trainer, pl_module, stage)
