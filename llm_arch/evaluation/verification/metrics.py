"""Metrics of the same rows, counted in batches of different sizes."""

from __future__ import annotations

import math

import torch

from llm_arch.data.module import DataModule
from llm_arch.evaluation.verification.base import Check, Outcome, at_most
from llm_arch.evaluation.verification.subject import ROWS, Subject
from llm_arch.task import Task

BOUND = 1e-5
_WRITTEN = 3  # rows of which metrics that take long are counted, such as those of written texts


class Metrics(Check):
    """Metrics do not depend on the batch size of evaluation."""

    promise = "metrics: equal for any batch size"

    def run(self, subject: Subject) -> Outcome:
        """Compare batches of one row with a batch of all, in double precision, so that no tie falls another way."""
        split = next(name for name in ("test", "validation", "train") if name in subject.data.splits)
        task = subject.task().double().eval()
        worst, where = 0.0, ""
        whole: dict[str, float] = {}
        for count, final in ((ROWS, False), (_WRITTEN, True)):
            rows = subject.rows(count, split)
            single, whole = (
                _measured(task, subject.part(rows, split, evaluation_tokens=tokens), split, final)
                for tokens in (1, 10**9)
            )
            for name in single.keys() | whole.keys():
                one, all_ = single.get(name, math.inf), whole.get(name, math.inf)
                # Of rows too few a metric may be no number; it must be none in both.
                far = 0.0 if one == all_ or (one != one and all_ != all_) else abs(one - all_) / max(1.0, abs(all_))
                if not far <= worst:
                    worst, where = far, f": {name} is {one:.6g} by single rows, {all_:.6g} in one batch"
        shown = "" if worst <= BOUND else where
        return at_most(worst, BOUND, f"{len(whole)} numbers of {split} rows, singly and in one batch{shown}")


@torch.no_grad()
def _measured(task: Task, data: DataModule, split: str, final: bool) -> dict[str, float]:
    """Loss and metrics of a split."""
    metric = task.head.metrics()
    total = counted = 0.0
    for batch in data.evaluation_loader(split):
        loss, values = task.head.evaluate(task.backbone(batch), batch, final=final)
        metric.update(*values)
        total += float(loss.sum)
        counted += float(loss.denominator)
    return {**{name: float(value) for name, value in metric.compute().items()}, "loss": total / max(counted, 1e-12)}
