"""Numbers that go wrong: a step whose loss or gradient is not finite never changes the weights."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from llm_arch.callbacks.checkpoint import step_has_ended
from llm_arch.types import UserError

_NAMED = 12  # rows of a batch that a message lists
# A run that is still this close to where it began has learnt nothing.
_AT_CHANCE = 0.98
_BEGINNING = 20  # steps
_PATIENCE = 16  # steps on a GPU until it is asked whether they were left out: asking is waiting


# Of the micro-batches of a step: row numbers and loss.
_Rows = list[tuple[Tensor, Tensor]]


class Guard(L.Callback):
    """Leaves out steps whose loss or gradient is NaN or infinite, and names the rows they were made of.

    Without gradients the optimizer changes neither weights nor its own state; the loss that is logged stays the real
    one. At the end it says so where the loss never fell.

    Args:
        policy: `skip` leaves the step out and goes on, `stop` ends the run at once.
        max_skips: after so many steps that were left out the run ends; they are counted over resumed runs too.
    """

    def __init__(self, policy: Literal["skip", "stop"] = "skip", max_skips: int = 10) -> None:
        if policy not in ("skip", "stop"):
            raise UserError(f"policy must be skip or stop, got {policy!r}")
        if max_skips < 0:
            raise UserError(f"max_skips must be at least 0, got {max_skips}")
        self.policy = policy
        self.max_skips = max_skips
        self.skipped = 0
        self._rows: _Rows = []
        self._waiting: list[tuple[int, Tensor, _Rows]] = []  # steps that nobody has asked about: which, whether, rows
        self._seen = 0
        self._first: Tensor | float = 0.0  # mean loss of the first steps, and of the last ones
        self._recent: Tensor | float = 0.0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Ask before the count is kept; Lightning has asked for it already."""
        self._settle(trainer)
        states = checkpoint.get("callbacks", {})
        if self.state_key in states:
            states[self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on counting."""
        first, recent = float(self._first), float(self._recent)
        return {"skipped": self.skipped, "seen": self._seen, "first": first, "recent": recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self._seen = state_dict["skipped"], state_dict["seen"]
        self._first, self._recent = state_dict["first"], state_dict["recent"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say which step was left out, and end the run where that is asked for or happens too often."""
        loss = outputs["loss"].detach() if outputs else torch.zeros(())
        self._rows.append((batch.row_index, loss))
        if getattr(pl_module, "changing", False):  # pruned models lose something each time; what counts comes after
            self._seen, self._first, self._recent = 0, 0.0, 0.0
        else:
            self._follow(trainer, loss)
        if not step_has_ended(trainer):
            return
        rows, self._rows = self._rows, []
        left_out = getattr(pl_module, "left_out", False)
        if isinstance(left_out, Tensor):
            self._waiting.append((trainer.global_step, left_out, rows))
            if self.policy == "stop" or len(self._waiting) >= _PATIENCE:
                self._settle(trainer)
        elif left_out:
            self._say(trainer, trainer.global_step, rows)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask about the last steps."""
        self._settle(trainer)

    def _settle(self, trainer: L.Trainer) -> None:
        """Ask the GPU which steps were left out."""
        waiting, self._waiting = self._waiting, []
        if waiting and bool(torch.stack([left_out for _, left_out, _ in waiting]).any()):
            for step, left_out, rows in waiting:
                if left_out > 0:
                    self._say(trainer, step, rows)

    def _say(self, trainer: L.Trainer, step: int, rows: _Rows) -> None:
        """Name the rows of a step that was left out; end the run where that is asked for or happens too often."""
        self.skipped += 1
        wrong = [numbers for numbers, loss in rows if not bool(torch.isfinite(loss))]
        what = "loss" if wrong else "gradient"
        named = torch.cat(wrong or [numbers for numbers, _ in rows]).tolist()
        said = f"step {step}: the {what} is not finite, weights stay as they were; {_named(trainer, named)}"
        if self.policy == "stop" or self.skipped > self.max_skips:
            often = (
                ""
                if self.policy == "stop"
                else f" This is step {self.skipped} of that kind (max_skips {self.max_skips})."
            )
            raise UserError(f"{said}.{often} Look at these rows, or lower the learning rate")
        rank_zero_warn(f"{said} ({self.skipped} of at most {self.max_skips} such steps)")

    def _follow(self, trainer: L.Trainer, loss: Tensor) -> None:
        """Keep a mean of the first losses and one of the last, without waiting for a GPU; sums say nothing."""
        if trainer.accumulate_grad_batches * trainer.world_size > 1:
            return
        self._seen += 1
        if self._seen <= _BEGINNING:
            self._first = self._first + loss / _BEGINNING
            self._recent = self._first
        else:
            self._recent = self._recent + (loss - self._recent) / _BEGINNING

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where the loss never fell."""
        self._settle(trainer)
        first, last = float(self._first), float(self._recent)
        if self._seen >= 3 * _BEGINNING and math.isfinite(first) and not last < _AT_CHANCE * first:
            rank_zero_warn(
                f"the loss has not fallen: {first:.4g} in the first {_BEGINNING} steps, {last:.4g} in the last; "
                "try another learning rate, and look whether labels and texts belong together"
            )


def _named(trainer: L.Trainer, rows: list[int]) -> str:
    """The rows of a step, by their lines where the data knows them."""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    shown = rows[:_NAMED]
    try:
        split = trainer.datamodule.split("train")  # type: ignore[attr-defined]
        places = shown if split.chosen is None else split.chosen[shown].tolist()
        lines = [split.rows[int(place)]["line"] for place in places]
        return f"lines {', '.join(map(str, lines))}{more} of {split.source}"
    except (AttributeError, KeyError, TypeError, IndexError):  # data of another kind has no lines
        return f"rows {', '.join(map(str, shown))}{more}"
