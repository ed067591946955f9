"""Loss and gradient of batches, and how far two of them are apart.

Legend: P trainable weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from llm_arch.task import Task
from llm_arch.types import Batch, UserError


class Step(NamedTuple):
    """The mean loss over some batches, and its gradient (P,)."""

    loss: float
    gradient_P: Tensor


@contextmanager
def full_fp32() -> Iterator[None]:
    """Products of fp32 without short cuts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def step_of(task: Task, batches: Sequence[Batch]) -> Step:
    """Loss and gradient as a run makes them of micro-batches: sums over what all of them count, without dropout."""
    task.eval()
    trained = [p for p in task.parameters() if p.requires_grad]
    total_P: Tensor | float = 0.0
    loss_sum = counted = 0.0
    with full_fp32():
        for batch in batches:
            loss = task.loss(batch)
            found = torch.autograd.grad(loss.sum, trained, allow_unused=True)
            parts = [(torch.zeros_like(p) if g is None else g) for g, p in zip(found, trained, strict=True)]
            total_P = total_P + torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in parts])
            loss_sum += float(loss.sum.detach())
            counted += float(loss.denominator)
    if not counted:
        raise UserError("the loss counts nothing in these rows: its denominator is 0")
    assert isinstance(total_P, Tensor)
    return Step(loss_sum / counted, total_P / counted)


def apart(one: Step, other: Step) -> tuple[float, str]:
    """The larger of the relative differences of loss and gradient (by norm), and both of them in words."""
    loss = abs(one.loss - other.loss) / max(abs(one.loss), 1e-12)
    gradient = relative(one.gradient_P, other.gradient_P)
    return max(loss, gradient), f"relative difference: loss {loss:.1e}, gradient {gradient:.1e}"


def relative(one_P: Tensor, other_P: Tensor) -> float:
    """The norm of the difference over that of the first."""
    size = float(one_P.double().norm())
    return float((one_P - other_P).double().norm()) / max(size, 1e-30) if size or float(other_P.norm()) else 0.0
