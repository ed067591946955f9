"""Stop when the head's major metric no longer improves."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as _EarlyStopping
from lightning.pytorch.utilities import rank_zero_info

from llm_arch.callbacks.monitor import monitor_of, validates


class EarlyStopping(_EarlyStopping):
    """Lightning's EarlyStopping on the metric the head names, unless told otherwise.

    Args:
        monitor: a logged value such as `val/loss`; None for `val/` and the head's major metric.
        mode: `min` or `max`; None for the head's own.
        patience: validations without improvement before training stops.
        min_delta: smallest change that counts as an improvement.

    Attributes:
        had_stopped: what to say of a resumed run that had stopped early before; None for others.
    """

    def __init__(
        self, monitor: str | None = None, mode: str | None = None, *, patience: int = 3, min_delta: float = 0.0
    ) -> None:
        super().__init__(monitor=monitor or "", mode=mode or "max", patience=patience, min_delta=min_delta)
        self._given = monitor, mode
        self._patience, self._min_delta = patience, min_delta
        self.had_stopped: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask the head what to follow."""
        if stage == "fit":
            monitor, mode = monitor_of(pl_module, *self._given)
            follows = validates(trainer)
            if not follows:
                rank_zero_info("no validation rows: early stopping has nothing to follow, all epochs will run")
            # Its constructor derives everything from the mode, so it is run again now that the mode is known.
            _EarlyStopping.__init__(
                self,
                monitor=monitor,
                mode=mode,
                strict=follows,
                patience=self._patience,
                min_delta=self._min_delta,
                # At the end of an epoch that max_steps cut short there is nothing new to look at.
                check_on_train_epoch_end=False,
            )
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was seen so far; the patience is that of this run."""
        super().load_state_dict(state_dict)
        self.patience = self._patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train no further where the run that is resumed had stopped early."""
        super().on_train_start(trainer, pl_module)
        if self.wait_count and self.wait_count >= self.patience:  # a fresh run may have a patience of 0
            trainer.should_stop = True
            self.had_stopped = (
                f"the run had stopped early, after {self.wait_count} validations without a better {self.monitor}; "
                "give EarlyStopping a greater patience to go on"
            )
            rank_zero_info(self.had_stopped)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look, once the model has its final shape."""
        if not getattr(pl_module, "changing", False):
            super().on_validation_end(trainer, pl_module)
