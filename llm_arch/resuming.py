"""Where a run stands beyond what Lightning keeps: validations that are due, places counted by other ranks."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from llm_arch.types import UserError


class Standing:
    """What a run must know to go on exactly where it was.

    Attributes:
        due: whether the validation after the last step is still to be done.
        dense: whether the run goes on from one whose embeddings had dense gradients.
    """

    def __init__(self) -> None:
        self.due = False
        self.dense = False
        self._validated = (-1, -1)  # epoch and micro-batch of the last validation that ended

    def validated(self, trainer: L.Trainer) -> None:
        """Note that a validation has ended."""
        self._validated = _place(trainer)

    def start(self, trainer: L.Trainer) -> None:
        """Do the validation that is due, and let those to come wait for steps to end."""
        if self.due:  # the run was stopped between a step and its validation
            self.due = False
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.batch_progress.reset()
            trainer.validating = True
            loop.run()
            loop._has_run = False  # else Lightning ends this epoch, and those that follow, as done
            trainer.training = True
        every, step = trainer.val_check_batch, trainer.accumulate_grad_batches
        if every and every % step and every < trainer.num_training_batches:
            # A checkpoint written within a step lacks the gradients that the step already has.
            trainer.val_check_batch = min(math.ceil(every / step) * step, trainer.num_training_batches)

    def save(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Note what Lightning would leave out in the resumed run: a validation due now, the rest of a cut epoch."""
        due = self.due or (_validates_here(trainer) and self._validated != _place(trainer))
        checkpoint["validation_due"] = due
        checkpoint["ranks"], checkpoint["accumulation"] = trainer.world_size, trainer.accumulate_grad_batches
        if due:  # what it had done of it is done again
            progress = type(trainer.fit_loop.epoch_loop.val_loop.batch_progress)()
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress.state_dict()
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        ended = epochs["current"]["processed"] == epochs["current"]["ready"]
        if ended and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # Lightning counts an epoch that was cut short as done: a longer run would never see the rest of its rows.
            for counts in epochs.values():
                counts["processed"] -= 1

    def load(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Remember whether a validation is due, and find the place of a run of another number of ranks.

        Raises:
            UserError: the steps of the two runs are not made of as many micro-batches, or the optimizer's state is of
                one process.
        """
        self.due = bool(checkpoint.get("validation_due", False))
        moments = [state for saved in checkpoint["optimizer_states"] for state in saved["state"].values()]
        by_row = any("rows" in state for state in moments)
        self.dense = bool(moments) and not by_row
        ranks, accumulation = checkpoint.get("ranks"), checkpoint.get("accumulation")
        if trainer.state.fn != "fit" or ranks in (None, trainer.world_size):
            return
        now, before = trainer.world_size * trainer.accumulate_grad_batches, ranks * accumulation
        if now != before:
            raise UserError(
                f"the checkpoint is of {ranks} processes with accumulate_grad_batches {accumulation}: {before} "
                f"micro-batches a step, here {now}; set trainer.accumulate_grad_batches so that they are as many"
            )
        # Lightning counts the micro-batches of one rank; `completed` may be one behind within a callback.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["current"], progress["total"]):
            more = counts["ready"] * ranks // trainer.world_size - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})
        if by_row and trainer.world_size > 1:
            raise UserError(
                "the checkpoint is of one process on a CPU, which keeps the moments of embeddings by their rows; go on "
                "with one process, or give model.optimizer, such as torch.optim.AdamW, from the beginning"
            )


def _place(trainer: L.Trainer) -> tuple[int, int]:
    """The epoch, and how many of its micro-batches are done."""
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


def _validates_here(trainer: L.Trainer) -> bool:
    """Whether the trainer looks at the validation rows after the micro-batch that it has just done."""
    loop = trainer.fit_loop
    if loop._data_fetcher is None or loop.epoch_loop.batch_progress.current.ready == 0:
        return False
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))
