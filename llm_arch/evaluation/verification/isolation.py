"""Whether rows of a batch see each other.

Legend: T tokens, N tokens of the rows that stay, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_arch.evaluation.verification.base import Check, Outcome, at_most, skip
from llm_arch.evaluation.verification.exactness import full_fp32
from llm_arch.evaluation.verification.subject import ROWS, Subject
from llm_arch.types import Backbone, Batch

BOUND = 1e-6


class Isolation(Check):
    """No state depends on the other rows or documents of its batch."""

    promise = "no attention across rows and documents"

    def run(self, subject: Subject) -> Outcome:
        """Put another row in the place of one; no state of those that stay may move."""
        *rows, other = subject.rows(ROWS + 1)
        if len(rows) < 2:
            return skip("there are too few training rows to put one in the place of another")
        backbone = subject.task().eval().backbone
        place = len(rows) // 2
        changed = [*rows[:place], other, *rows[place + 1 :]]
        before_ND, after_ND = (_others(backbone, subject.batch(some), place) for some in (rows, changed))
        if before_ND.shape != after_ND.shape:
            tokens = len(before_ND), len(after_ND)
            return at_most(float("inf"), BOUND, f"the rows that stay had {tokens[0]} tokens, and then {tokens[1]}")
        moved = float((before_ND - after_ND).abs().max() / before_ND.abs().max().clamp(min=1e-12))
        reason = f"row {place + 1} of {len(rows)} changed; the others' states, over the largest state"
        return at_most(moved, BOUND, reason)


def _others(backbone: Backbone, batch: Batch, row: int) -> Tensor:
    """(N, D): the states of all rows but one."""
    with full_fp32(), torch.no_grad():
        states_TD = backbone(batch).last_TD
    kept_T = batch.row_of_sequence[batch.segments] != row
    return states_TD[kept_T if batch.valid is None else kept_T & batch.valid]
