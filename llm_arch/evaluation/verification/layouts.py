"""Flat and padded batches of the same rows."""

from __future__ import annotations

from llm_arch.evaluation.verification.base import Check, Outcome, at_most
from llm_arch.evaluation.verification.exactness import apart, step_of
from llm_arch.evaluation.verification.subject import Subject

BOUND = 1e-5


class Layouts(Check):
    """The layout changes neither loss nor gradient."""

    promise = "loss and gradient: flat = padded"

    def run(self, subject: Subject) -> Outcome:
        """Compare one batch in both layouts, in fp32 and without dropout."""
        task, rows = subject.task(), subject.rows()
        flat, padded = (step_of(task, [subject.batch(rows, layout)]) for layout in ("flat", "padded"))
        measured, said = apart(flat, padded)
        return at_most(measured, BOUND, f"{said}, over {len(rows)} rows")
