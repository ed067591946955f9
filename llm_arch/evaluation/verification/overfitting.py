"""Whether a few examples can be learnt by heart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from llm_arch.evaluation.verification.base import Check, Outcome, at_most
from llm_arch.evaluation.verification.subject import ROWS, Subject
from llm_arch.task import Task
from llm_arch.types import Batch

BOUND = 0.5  # of the loss at the start
EXAMPLES, STEPS = 8, 40
# Learning rates that are tried, times the width: frozen backbones need the second, touchy ones the third.
_RATES = (0.4, 4.0, 0.04)


class Overfitting(Check):
    """Eight examples can be learnt: the loss falls to half of what it was at the start."""

    promise = "overfits 8 examples"

    def run(self, subject: Subject) -> Outcome:
        """Train on one batch of the shortest rows at hand, without dropout, until the loss is low enough."""
        lengths = subject.data.split("train").lengths
        rows = sorted(subject.rows(ROWS), key=lambda row: int(lengths[row]))[:EXAMPLES]
        batch = subject.batch(rows)
        best, steps = float("inf"), 0
        for rate in _RATES:
            left, steps = _learn(subject.task(), batch, rate)
            best = min(best, left)
            if best <= BOUND:
                break
        tried = f"{steps} steps" if best <= BOUND else f"{STEPS} steps at each of {len(_RATES)} learning rates"
        return at_most(best, BOUND, f"loss after {tried} on {len(rows)} rows, over the loss at the start")


def _learn(task: Task, batch: Batch, rate: float) -> tuple[float, int]:
    """The lowest loss over the first, and after how many steps."""
    task.eval()
    trained: list[Tensor] = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate / task.backbone.hidden_size, weight_decay=0.0)
    first, best = 0.0, float("inf")
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        loss = task.loss(batch).mean
        first = first or float(loss.detach())
        best = min(best, float(loss.detach()) / first)
        if best <= BOUND or step == STEPS:
            break
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return best, step
