"""One batch, and the same rows in micro-batches."""

from __future__ import annotations

from llm_arch.evaluation.verification.base import Check, Outcome, at_most, skip
from llm_arch.evaluation.verification.exactness import apart, step_of
from llm_arch.evaluation.verification.subject import Subject

BOUND = 1e-5


class Accumulation(Check):
    """Accumulated micro-batches give the loss and the gradient of one batch."""

    promise = "loss and gradient: one batch = accumulated"

    def run(self, subject: Subject) -> Outcome:
        """Compare one batch with three unequal ones, in fp32 and without dropout."""
        task, rows = subject.task(), subject.rows()
        if task.head.why_not_additive is not None:
            return skip(task.head.why_not_additive)
        if len(rows) < 2:
            return skip("there is a single training row")
        cuts = sorted({0, 1, 1 + (len(rows) - 1) // 3, len(rows)})
        parts = [subject.batch(rows[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
        measured, said = apart(step_of(task, [subject.batch(rows)]), step_of(task, parts))
        sizes = " + ".join(str(part.rows) for part in parts)
        return at_most(measured, BOUND, f"{said}, {len(rows)} rows = {sizes}")
