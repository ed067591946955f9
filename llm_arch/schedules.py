"""How the learning rate moves over a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from llm_arch.types import UserError


class Schedule(ABC):
    """How the learning rate moves over a run."""

    @abstractmethod
    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """A scheduler to be stepped after each of the run's `steps` optimizer steps."""


class _Warmup(Schedule):
    """A linear rise to the optimizer's learning rate, then `after`.

    Args:
        warmup: the rise, as a share of all steps when below 1, else as a number of steps.
        final: the share of the learning rate reached just after the last step.
    """

    def __init__(self, warmup: float = 0.1, final: float = 0.0) -> None:
        _check_span("warmup", warmup)
        if not 0 <= final <= 1:
            raise UserError(f"final must be in [0, 1], got {final}")
        self.warmup, self.final = warmup, final

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """A scheduler whose saved state is plain numbers."""
        if not 1 <= steps < math.inf:
            raise UserError(f"a schedule needs a number of steps, at least 1, got {steps}")
        return LambdaLR(optimizer, partial(self.factor_at, steps=steps))  # a partial, unlike a lambda, can be pickled

    def factor_at(self, step: int, steps: int) -> float:
        """The share of the learning rate used in a step, counted from 0; positive in all of the `steps`."""
        warmup = _span(self.warmup, steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.after(min(1.0, (step - warmup) / max(1, steps - warmup)))

    @abstractmethod
    def after(self, progress: float) -> float:
        """The factor once warm; progress runs from 0 to below 1 over the remaining steps, and is 1 from then on."""


class Linear(_Warmup):
    """A linear rise, then a straight line down to `final`."""

    def after(self, progress: float) -> float:
        """A line from 1 to final."""
        return 1 - (1 - self.final) * progress


class Cosine(_Warmup):
    """A linear rise, then half a cosine down to `final` (Loshchilov & Hutter 2017, one cycle)."""

    def after(self, progress: float) -> float:
        """Half a cosine from 1 to final."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Constant(_Warmup):
    """A linear rise, then the same learning rate to the end.

    Args:
        warmup: the rise, as a share of all steps when below 1, else as a number of steps.
    """

    def __init__(self, warmup: float = 0.1) -> None:
        super().__init__(warmup, final=1.0)

    def after(self, progress: float) -> float:
        """Always 1."""
        return 1.0


class WarmupStableDecay(_Warmup):
    """A linear rise, then the full learning rate, then a fall to `final` over the last steps (Hu et al. 2024).

    With the rise in steps, nothing before the fall depends on how long the run is: a longer one goes on from any
    checkpoint of it. Where rise and fall overlap, in very short runs, their factors multiply.

    Args:
        warmup: the rise, as a share of all steps when below 1, else as a number of steps.
        decay: the fall, likewise; 0.1 to 0.2 is enough (Hägele et al. 2024).
        shape: how it falls with the share x of it that is done: `1-sqrt` by 1 - √x, the better one there, or `linear`.
        final: the share of the learning rate reached just after the last step.
    """

    def __init__(
        self,
        warmup: float = 0.1,
        decay: float = 0.2,
        shape: Literal["linear", "1-sqrt"] = "1-sqrt",
        final: float = 0.0,
    ) -> None:
        super().__init__(warmup, final)
        _check_span("decay", decay)
        if warmup < 1 and decay < 1 and warmup + decay > 1:
            raise UserError(f"warmup and decay together can't be more than all steps (1), got {warmup} and {decay}")
        if shape not in ("linear", "1-sqrt"):
            raise UserError(f"shape must be linear or 1-sqrt, got {shape!r}")
        self.decay, self.shape = decay, shape

    def factor_at(self, step: int, steps: int) -> float:
        """The share of the learning rate used in a step, counted from 0; positive in all of the `steps`."""
        decay = min(_span(self.decay, steps), steps)
        done = min(1.0, max(0, step - (steps - decay)) / decay) if decay else 0.0
        lost = done if self.shape == "linear" else math.sqrt(done)
        return super().factor_at(step, steps) * (1 - (1 - self.final) * lost)

    def after(self, progress: float) -> float:
        """Stable once warm."""
        return 1.0


def _check_span(name: str, span: float) -> None:
    if not 0 <= span < math.inf or (span >= 1 and not float(span).is_integer()):
        raise UserError(f"{name} must be a share in [0, 1) or a whole number of steps, got {span}")


def _span(span: float, steps: int) -> int:
    """A share of all steps when below 1, else a number of steps; as a number of steps."""
    return int(span) if span >= 1 else round(span * steps)
