"""The best model within a budget: how many heads and neurons each layer keeps, and which layers go.

The idea of SPDY (Frantar & Alistarh 2022), applied to structures as in ZipLM (Kurtic et al. 2023): losses add up over
layers, and so do costs; then the least loss within a budget is found by dynamic programming over the budget cut into
small bins.

Legend: L layers, K ways to shape a layer, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_arch.compression.prices import Prices
from llm_arch.types import UserError

Values = NDArray[np.float64]
_REMOVED = -1


@dataclass(frozen=True)
class Losses:
    """What is lost by removing parts, in any unit that adds up; 0 for what stays whole.

    Attributes:
        heads: for each layer (H + 1,) the loss where it keeps 0 … H heads.
        neurons: for each layer (N + 1,) the loss where its FFN keeps 0 … N neurons.
        layers: (L,) the loss of removing a layer whole.
    """

    heads: Sequence[Values]
    neurons: Sequence[Values]
    layers: Values

    def __post_init__(self) -> None:
        if not len(self.heads) == len(self.neurons) == len(self.layers) > 0:
            raise ValueError(
                f"losses of {len(self.heads)} layers' heads, {len(self.neurons)} layers' neurons and "
                f"{len(self.layers)} layers; all must be of the same layers"
            )
        if not all(np.isfinite(values).all() for values in (*self.heads, *self.neurons, self.layers)):
            raise ValueError("losses must be finite")


def solve(
    losses: Losses, prices: Prices, budget: float, *, multiple: int = 1, bins: int = 10_000
) -> list[tuple[int, int] | None]:
    """The sizes of least loss that cost no more than a budget; at least one layer stays.

    Each layer's cost is rounded up to a bin, so that the budget is kept for certain, and up to L bins of it may be left
    unused; within that the result is exact.

    Args:
        losses: what each part is worth.
        prices: what each part costs.
        budget: what the model may cost, in the unit of `prices`.
        multiple: neurons kept are a multiple of this number, or all; sizes that suit the hardware.
        bins: parts of the budget.

    Returns:
        For each layer the number of heads and neurons to keep, or None to remove it.

    Raises:
        UserError: even the smallest model costs more, with how far one can get.
    """
    if multiple < 1 or bins < 1:
        raise UserError(f"multiple and bins must be at least 1, got {multiple} and {bins}")
    whole = [(len(h) - 1, len(n) - 1) for h, n in zip(losses.heads, losses.neurons, strict=True)]
    dense = prices.total(whole)
    if math.isnan(budget) or budget <= 0:
        raise UserError(f"the budget must be above 0, got {budget}")
    if budget >= dense:
        return list(whole)
    shapes = [_shapes(losses, prices, layer, multiple) for layer in range(len(whole))]
    cheapest = prices.outside + min(float(one.cost_K.min()) for one in shapes)
    room = budget - prices.outside
    if cheapest > budget:
        raise UserError(
            f"target {dense / budget:.3g}x can't be reached: the smallest model of this shape is "
            f"{math.floor(100 * dense / cheapest) / 100:.3g}x faster"
        )
    # The least loss of the layers so far within b bins, where one of them is kept, and where none is.
    least_B, removed = np.full(bins + 1, math.inf), 0.0
    steps = []
    for shape, loss in zip(shapes, losses.layers.tolist(), strict=True):
        units_K = np.ceil(shape.cost_K * (bins / room) - 1e-9).astype(np.int64).clip(0)
        first_B = removed < least_B  # where the layers below are best removed, all of them, if this one is kept
        below_B = np.minimum(least_B, removed)
        least_B, removed = least_B + loss, removed + loss
        choice_B = np.full(bins + 1, _REMOVED)
        for k in np.flatnonzero(units_K <= bins).tolist():
            units = int(units_K[k])
            with_B = below_B[: bins + 1 - units] + shape.loss_K[k]
            better_B = with_B < least_B[units:]
            least_B[units:][better_B] = with_B[better_B]
            choice_B[units:][better_B] = k
        steps.append((shape, units_K, choice_B, first_B))
    found: list[tuple[int, int] | None] = []
    left, others_gone = bins, False
    for shape, units_K, choice_B, first_B in reversed(steps):
        k = _REMOVED if others_gone else int(choice_B[left])
        found.append(None if k == _REMOVED else shape.sizes[k])
        if k != _REMOVED:
            left -= int(units_K[k])
            others_gone = bool(first_B[left])
    return found[::-1]


class _Shapes(NamedTuple):
    """The ways to shape a layer that are worth it, ever more costly with ever less loss."""

    cost_K: Values
    loss_K: Values
    sizes: list[tuple[int, int]]


def _shapes(losses: Losses, prices: Prices, layer: int, multiple: int) -> _Shapes:
    loss_H, loss_N = losses.heads[layer], losses.neurons[layer]
    heads = np.arange(len(loss_H))
    neurons = np.unique([*range(0, len(loss_N), multiple), len(loss_N) - 1])
    cost_HN = prices.layer + prices.heads[heads][:, None] + prices.neurons[neurons]
    loss_HN = loss_H[:, None] + loss_N[neurons]
    places_K = np.lexsort((loss_HN.ravel(), cost_HN.ravel()))
    places_K = places_K[places_K != 0]  # neither heads nor neurons: that layer is removed
    loss_K = loss_HN.ravel()[places_K]
    least_K = np.concatenate([[math.inf], np.minimum.accumulate(loss_K)[:-1]])
    places_K = places_K[loss_K < least_K]
    of_heads, of_neurons = np.divmod(places_K, len(neurons))
    sizes = list(zip(heads[of_heads].tolist(), neurons[of_neurons].tolist(), strict=True))
    return _Shapes(cost_HN.ravel()[places_K], loss_HN.ravel()[places_K], sizes)
