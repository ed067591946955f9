"""Lightning's loop over epochs, where a run that is resumed at its end still ends as it should."""

from __future__ import annotations

from lightning.pytorch.loops.fit_loop import _FitLoop


class FitLoop(_FitLoop):
    """Lightning returns at once where there is nothing left to train, and what is done at the end is left undone.

    A run that was killed after its last checkpoint would keep its weights in place of their average, and would leave
    out a validation that was due.
    """

    @property
    def skip(self) -> bool:
        """Whether there is nothing to do at all."""
        nothing = self.trainer.limit_train_batches == 0 or self.max_batches == 0
        return nothing or (not self._loaded_from_state_dict and super().skip)
