"""Whether what a model says depends on what it reads.

Legend: M cells or rows that logits are about.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from llm_arch.evaluation.verification.base import Check, Outcome, at_least, skip
from llm_arch.evaluation.verification.subject import Subject
from llm_arch.types import Batch

BOUND = 1e-5
_ROWS = 4


class Inputs(Check):
    """Logits differ between rows, and change with the text."""

    promise = "output changes with input"

    def run(self, subject: Subject) -> Outcome:
        """Compare rows with each other, and a batch with one whose tokens have changed places."""
        task = subject.task().eval()
        batch = subject.batch(subject.rows(_ROWS))
        if batch.rows < 2:
            return skip("there is a single training row")
        with torch.no_grad():
            logits_M, other_M = (task(one).float() for one in (batch, _shuffled(batch)))
        size = float(logits_M[logits_M.isfinite()].abs().max().clamp(min=1e-12))
        between = float((logits_M.flatten(1) if logits_M.ndim > 1 else logits_M[:, None]).std(0).max()) / size
        moved = float((logits_M - other_M).abs().max()) / size
        said = f"logits differ by {between:.1e} of the largest from row to row, by {moved:.1e} when tokens change"
        return at_least(min(between, moved), BOUND, said)


def _shuffled(batch: Batch) -> Batch:
    """The batch with the tokens of its text in each other's place, and everything else as it is."""
    if batch.source is not None:  # what an encoder–decoder is to write stays
        return replace(batch, source=_shuffled(batch.source))
    ids_T = batch.input_ids.clone()
    inner = (batch.position_ids > 0) & (batch.position_ids < batch.lengths[batch.segments] - 1)
    places = inner.nonzero()[:, 0]
    ids_T[places] = ids_T[places.roll(max(1, len(places) // 2))]
    return replace(batch, input_ids=ids_T)
