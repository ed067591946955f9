"""Gates that are learnt, and held to a size.

Hard-concrete variables: Louizos et al. 2018, arXiv 1712.01312. The constraint: CoFi, Xia et al. 2022, arXiv 2204.00408.

Legend: L layers, H heads and N neurons of a layer, G gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm_arch.types import UserError

_BETA = 2 / 3  # temperature
_LOW, _HIGH = -0.1, 1.1  # a concrete variable is stretched to this interval and cut to [0, 1]
_SHIFT = _BETA * math.log(-_LOW / _HIGH)


class HardConcrete(nn.Module):
    """G random gates in [0, 1] that are exactly 0 or 1 with some probability, and can be learnt.

    Args:
        count: G.
        open: probability at first that a gate is not 0, in (0, 1).

    Attributes:
        log_alpha: (G,) what is learnt; larger is more open.
    """

    def __init__(self, count: int, open: float = 0.95) -> None:
        super().__init__()
        if not 0 < open < 1:
            raise UserError(f"open must be in (0, 1), got {open}")
        self.log_alpha = nn.Parameter(torch.full((count,), math.log(open / (1 - open)) + _SHIFT))

    def sample(self) -> Tensor:
        """(G,) drawn anew, with gradients of `log_alpha`."""
        draw_G = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
        return _cut(torch.sigmoid((draw_G.logit() + self.log_alpha) / _BETA))

    def fixed(self) -> Tensor:
        """(G,) without chance, as in a finished model."""
        return _cut(torch.sigmoid(self.log_alpha))

    def forward(self) -> Tensor:
        """Drawn while training, else fixed."""
        return self.sample() if self.training else self.fixed()

    def open(self) -> Tensor:
        """(G,) the probability that each is not 0, which is the expected L0 norm."""
        return torch.sigmoid(self.log_alpha - _SHIFT)


def _cut(concrete: Tensor) -> Tensor:
    return (concrete * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


class LearnedGates(nn.Module):
    """Hard-concrete gates of every head, neuron and layer, and what holds the model to a size.

    Args:
        heads: H of each layer.
        neurons: N of each layer.
        head_size: what a head weighs, such as its parameters or multiply-accumulates.
        neuron_size: what a neuron weighs.
        open: probability at first that a gate is not 0.

    Attributes:
        multipliers: (2,) of the constraint and its square; they start at 0, and go up the gradient of the penalty where
            everything else goes down.
    """

    def __init__(
        self, heads: Sequence[int], neurons: Sequence[int], head_size: float, neuron_size: float, open: float = 0.95
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(HardConcrete(count, open) for count in heads)
        self.neurons = nn.ModuleList(HardConcrete(count, open) for count in neurons)
        self.layers = HardConcrete(len(heads), open)
        self.head_size, self.neuron_size = head_size, neuron_size
        self._whole = head_size * sum(heads) + neuron_size * sum(neurons)
        if len(heads) != len(neurons) or not self._whole > 0:
            raise UserError(f"heads and neurons must be as many and have a size, got {list(heads)} and {list(neurons)}")
        self.multipliers = nn.Parameter(torch.zeros(2))

    def values(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Gates of heads, (H,) a layer, of neurons, (N,) a layer, and of layers, (L,): for one forward pass."""
        return [gate() for gate in self.heads], [gate() for gate in self.neurons], self.layers()

    def expected_size(self) -> Tensor:
        """Share of the whole size that is expected to stay, in (0, 1); gates are independent."""
        open_L = self.layers.open()
        sizes_L = torch.stack(
            [
                self.head_size * heads.open().sum() + self.neuron_size * neurons.open().sum()  # type: ignore[operator]
                for heads, neurons in zip(self.heads, self.neurons, strict=True)
            ]
        )
        return (open_L * sizes_L).sum() / self._whole

    def penalty(self, target: float) -> Tensor:
        """λ₁ (s − t) + λ₂ (s − t)², to be added to the mean loss; zero where the expected size s is the target.

        Args:
            target: t, the share of the whole size to end with, in (0, 1]; lowered little by little from 1.
        """
        if not 0 < target <= 1:
            raise UserError(f"target must be in (0, 1], got {target}")
        excess = self.expected_size() - target
        first, second = _Ascend.apply(self.multipliers).unbind()
        penalty: Tensor = first * excess + second * excess.square()
        return penalty


class _Ascend(torch.autograd.Function):
    """The identity, whose gradient is turned round: an optimizer that descends goes up."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient
