"""Gates that are learnt, and held to a size.

Hard-concrete variables: Louizos et al. 2018, arXiv 1712.01312. The constraint: CoFi, Xia et al. 2022, arXiv 2204.00408.

Legend: L layers, H heads and N neurons of a layer, G gates.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.importance import Scores
from llm_arch.compression.linear_layers import matrix
from llm_arch.compression.planning import most_important
from llm_arch.compression.prices import Prices, Sizes
from llm_arch.compression.structure import Shape, Structure
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
        return _fixed(self.log_alpha)

    def forward(self) -> Tensor:
        """Drawn while training, else fixed."""
        return self.sample() if self.training else self.fixed()

    def open(self) -> Tensor:
        """(G,) the probability that each is not 0, which is the expected L0 norm."""
        return torch.sigmoid(self.log_alpha - _SHIFT)


def _fixed(log_alpha: Tensor) -> Tensor:
    return _cut(torch.sigmoid(log_alpha))


def _cut(concrete: Tensor) -> Tensor:
    return (concrete * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def _price(prices_K: Tensor, count: Tensor) -> Tensor:
    """At a number that may lie between two, with its gradient."""
    below = count.detach().long().clamp(0, len(prices_K) - 2)
    return torch.lerp(prices_K[below], prices_K[below + 1], count - below)


class LearnedGates(nn.Module):
    """Hard-concrete gates of every head, neuron and layer, and what holds the model to a size.

    Args:
        heads: H of each layer.
        neurons: N of each layer.
        prices: what heads, neurons and layers cost; a size is a share of what the whole model costs by them.
        open: probability at first that a gate is not 0.

    Attributes:
        multipliers: (2,) of the constraint and its square; they go up the gradient of the penalty where everything else
            goes down. They start at 0 and 50 (at 0 both, in the paper): the square holds the size from the first step,
            so that the other need not catch up, and the size doesn't fall far below the target in short runs.
    """

    def __init__(self, heads: Sequence[int], neurons: Sequence[int], prices: Prices, open: float = 0.95) -> None:
        super().__init__()
        if not len(heads) == len(neurons) > 0:
            raise UserError(f"heads and neurons must be of as many layers, got {list(heads)} and {list(neurons)}")
        self.heads = nn.ModuleList(HardConcrete(count, open) for count in heads)
        self.neurons = nn.ModuleList(HardConcrete(count, open) for count in neurons)
        self.layers = HardConcrete(len(heads), open)
        self.multipliers = nn.Parameter(torch.tensor([0.0, 50.0]))
        self.prices, self.whole = prices, prices.total(list(zip(heads, neurons, strict=True)))
        of_heads, of_neurons = (
            torch.tensor(p / self.whole, dtype=torch.float32) for p in (prices.heads, prices.neurons)
        )
        self.register_buffer("of_heads", of_heads, persistent=False)
        self.register_buffer("of_neurons", of_neurons, persistent=False)

    def values(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Gates of heads, (H,) a layer, of neurons, (N,) a layer, and of layers, (L,): for one forward pass."""
        return [gate() for gate in self.heads], [gate() for gate in self.neurons], self.layers()

    def expected_size(self) -> Tensor:
        """What the model costs with the expected numbers of heads and neurons in the expected layers, in (0, 1].

        It is the expected cost where costs grow evenly; gates are independent.
        """
        sizes_L = torch.stack(
            [
                _price(self.of_heads, heads.open().sum()) + _price(self.of_neurons, neurons.open().sum())  # type: ignore[arg-type, operator]
                for heads, neurons in zip(self.heads, self.neurons, strict=True)
            ]
        )
        besides = (sizes_L + self.prices.layer / self.whole) * self.layers.open()
        return besides.sum() + self.prices.outside / self.whole

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

    @torch.no_grad()
    def structure(self, size: float, multiple: int = 1) -> Structure:
        """What is kept in the end: the most open gates that a size has room for.

        One threshold is for all gates, whose probabilities can be compared. Layers that are 0 without chance go too;
        the room that they, and layers that are too large for it, leave is for the units of others. The most open layer
        always stays, with a head if it has some.

        Args:
            size: share of the whole size that the model may have, in (0, 1].
            multiple: neurons kept in a layer are a multiple of this number, or all.

        Raises:
            UserError: one head or `multiple` neurons are more than that already.
        """
        smallest = self._smallest(multiple)
        if size < smallest:
            raise UserError(
                f"a model at {size:.3g} of its cost can't be reached: one layer with a head or {multiple} neurons has "
                f"{smallest:.3g} of it; take a smaller target"
            )
        heads, neurons = ([gate.log_alpha.detach().cpu() for gate in kind] for kind in (self.heads, self.neurons))  # type: ignore[operator]
        scores = Scores(heads, neurons, self.layers.log_alpha.detach().cpu())
        groups = [group.clone() for group in (*heads, *neurons, scores.layers)]
        layer = int(groups[-1].argmax())
        units, count = (groups[layer], 1) if len(groups[layer]) else (groups[len(heads) + layer], multiple)
        groups[-1][layer] = units[units.argsort(descending=True)[:count]] = math.inf  # something stays in any case
        every_G = torch.cat(groups)
        places = every_G.argsort(descending=True, stable=True).argsort().split([len(group) for group in groups])

        def sizes(units: int, layers: int) -> Sizes:
            """Of each layer, where the first so many gates are kept: of heads and neurons, and of layers."""
            kept = [int((place < units).sum()) for place in places[:-1]]
            found = []
            for layer, (h, n) in enumerate(zip(kept[: len(heads)], kept[len(heads) :], strict=True)):
                n = n if n == len(neurons[layer]) else n // multiple * multiple
                found.append((h, n) if int(places[-1][layer]) < layers and h + n else None)
            return found

        counts, room = range(len(every_G) + 1), size * self.whole * (1 + 1e-9)
        both = bisect_right(counts, room, key=lambda count: self.prices.total(sizes(count, count))) - 1
        layers = min(both, int((_fixed(every_G) > 0).sum()))
        units = bisect_right(counts, room, key=lambda count: self.prices.total(sizes(count, layers))) - 1
        of = Shape(len(heads), tuple(map(len, heads)), tuple(map(len, neurons)))
        return most_important(scores, sizes(units, layers), of)

    def _smallest(self, multiple: int) -> float:
        """The share of the whole cost that is always enough."""
        one = max(self.prices.heads[1], self.prices.neurons[min(multiple, len(self.prices.neurons) - 1)])
        return float(self.prices.outside + self.prices.layer + one) / self.whole

    @torch.no_grad()
    def multiply_into(self, model: nn.Module) -> None:
        """Multiply the factors that heads and neurons end with, without chance, into the projections behind them.

        Args:
            model: as `anatomy` takes it, with as many heads and neurons; without gates from here on.
        """
        for part, heads, neurons in zip(anatomy(model), self.heads, self.neurons, strict=True):
            for projection, gate, columns in (
                (part.attention_out, heads, part.head_columns),
                (part.ffn_out, neurons, 1),
            ):
                if len(gate.log_alpha):  # type: ignore[arg-type]
                    matrix(projection).mul_(gate.fixed().repeat_interleave(columns))  # type: ignore[operator]


class _Ascend(torch.autograd.Function):
    """The identity, whose gradient is turned round: an optimizer that descends goes up."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient
