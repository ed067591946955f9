"""The same run twice."""

from __future__ import annotations

from llm_arch.evaluation.verification import runs
from llm_arch.evaluation.verification.base import Check, Outcome
from llm_arch.evaluation.verification.subject import Subject


class Repetition(Check):
    """The same seed gives the same weights, from new ones on, bit for bit."""

    promise = "a seed repeats"

    def run(self, subject: Subject) -> Outcome:
        """Build everything anew, and compare weights and optimizer after two epochs of a few rows."""
        return runs.compared(runs.straight(subject), runs.repeated(subject), "built and trained anew")
