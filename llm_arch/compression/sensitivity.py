"""What a model loses without its parts: measured with gates, or added up from importance.

Within a layer the least important units go first; what is lost by different layers is taken to add up.

Legend: L layers, H heads of a layer, N neurons of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llm_arch.compression.gates import Gates
from llm_arch.compression.importance import Scores
from llm_arch.compression.solver import Losses, Values
from llm_arch.types import UserError

# Shares of a layer's units that are kept when its loss is measured; between them it is interpolated.
_SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
# What all heads or all neurons of a layer are worth at least: of parts without which nothing is lost, one by one, no
# more go than a budget asks for, since together they may count.
_SLIGHT = 1e-6
_MOST = 1e6


def added_up(scores: Scores) -> Losses:
    """The losses that importance tells: those of the units that go, one by one.

    Raises:
        UserError: a score is no finite number.
    """
    if not all(bool(torch.isfinite(one).all()) for one in (*scores.heads, *scores.neurons, scores.layers)):
        raise UserError("the importance of the parts is not finite on these rows; look at them, and at the model")
    heads, neurons = ([_sums(one) for one in units] for units in (scores.heads, scores.neurons))
    # The derivative by a layer's own gate also counts what its norms do, which the layers above soon learn to do
    # without: a layer is worth no more than its units, or crumbs of it would be kept that take time and do little.
    units = np.array([h[0] + n[0] for h, n in zip(heads, neurons, strict=True)])
    return Losses(heads, neurons, np.minimum(scores.layers.double().numpy(), units))


def measured(
    gates: Gates, scores: Scores, loss_of: Callable[[], float], advance: Callable[[int], None] | None = None
) -> Losses:
    """The losses of each layer with a share of its units, and without it, all else being whole.

    Args:
        gates: attached to the model, all open; left so.
        scores: which units go first.
        loss_of: the loss of some rows by the model as it is gated.
        advance: called with the number of measurements that are left, before each.

    Returns:
        What each part adds to the loss, made always to rise a little as more goes.

    Raises:
        UserError: the loss of the whole model is no finite number.
    """
    heads = [_grid(len(gate)) for gate in gates.heads]
    neurons = [_grid(len(gate)) for gate in gates.neurons]
    left = 1 + len(gates.layers) + sum(len(grid) for grid in (*heads, *neurons))

    def look() -> float:
        nonlocal left
        if advance is not None:
            advance(left)
        left -= 1
        return loss_of()

    whole = look()
    if not math.isfinite(whole):
        raise UserError(f"the loss of the rows that pruning looks at is {whole}; look at them, and at the model")

    def of_units(gate: Tensor, score: Tensor, grid: Sequence[int]) -> Values:
        order = score.argsort(descending=True).to(gate.device)
        lost = []
        for kept in grid:
            gate.zero_()[order[:kept]] = 1.0
            lost.append(_finite(look() - whole))
        gate.fill_(1.0)
        # From all units to none: a loss that falls on the way is noise.
        rising = np.maximum.accumulate([0.0, *reversed(lost)])[::-1]
        gone = np.arange(len(gate), -1, -1) / max(len(gate), 1)
        return np.interp(np.arange(len(gate) + 1), [*grid, len(gate)], rising) + _SLIGHT * gone

    with torch.no_grad():
        of_heads = [of_units(*one) for one in zip(gates.heads, scores.heads, heads, strict=True)]
        of_neurons = [of_units(*one) for one in zip(gates.neurons, scores.neurons, neurons, strict=True)]
        of_layers = []
        for layer in range(len(gates.layers)):
            gates.layers[layer] = 0.0
            of_layers.append(max(0.0, _finite(look() - whole)) + 2 * _SLIGHT)
            gates.layers[layer] = 1.0
    return Losses(of_heads, of_neurons, np.array(of_layers))


def _finite(lost: float) -> float:
    """What makes numbers overflow is worth more than anything else."""
    return lost if math.isfinite(lost) else _MOST


def _grid(units: int) -> list[int]:
    """Numbers of units to measure with, in rising order, without all of them."""
    return sorted({round(share * units) for share in _SHARES} - {units})


def _sums(scores: Tensor) -> Values:
    """(U,) → (U + 1,): the sum of all but the k largest, for each k."""
    rising = scores.double().sort().values.numpy()
    return np.concatenate([[0.0], np.cumsum(rising)])[::-1].copy()
