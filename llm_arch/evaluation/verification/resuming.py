"""A run that was interrupted, beside one that was not."""

from __future__ import annotations

from llm_arch.evaluation.verification import runs
from llm_arch.evaluation.verification.base import Check, Outcome
from llm_arch.evaluation.verification.subject import Subject


class Resuming(Check):
    """An interrupted and resumed run ends as the straight one, bit for bit, with dropout on."""

    promise = "interrupted run = straight run"

    def run(self, subject: Subject) -> Outcome:
        """Compare weights and optimizer after two epochs of a few rows."""
        return runs.compared(runs.straight(subject), runs.interrupted(subject), f"interrupted after step {runs.STOP}")
