"""How long a transformer of any sizes would take on this machine, from measuring a few.

The latency table of ZipLM (Kurtic et al. 2023): seconds of an attention sublayer by its heads and of an FFN by its
neurons, measured on this very machine. What pruning promises then holds in seconds, not only in parameters.

Legend: G lengths of the table, H heads, N neurons, R rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.prices import Prices, Sizes
from llm_arch.compression.stacks import FEWEST_TURNS, Times, alternate, clock_of, dense_stack, pruned_stack, share, size
from llm_arch.types import Backbone, UserError

Values = NDArray[np.float64]

LENGTHS = (8, 16, 32, 64, 128)
_VERSION = 1  # raise when the same machine would be measured otherwise
_HEADS = (0, 1 / 3, 2 / 3, 1)
_NEURONS = (0, 1 / 16, 1 / 4, 1 / 2, 1)
_TOGETHER = 4  # variants that are in memory at a time


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a model's parts for one row, by its tokens.

    Attributes:
        lengths: (G,) tokens, rising.
        heads: numbers of heads that were timed, from 0.
        neurons: numbers of neurons that were timed, from 0.
        of_heads: (G, …) seconds of the heads of a layer, for each of these numbers; those of none are 0.
        of_neurons: (G, …) seconds of the neurons of a layer likewise.
        of_layer: (G,) seconds of a layer besides: norms, residuals, calls.
        outside: (G,) seconds of the backbone besides its layers.
        machine: what it was measured on.
    """

    lengths: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    of_heads: tuple[tuple[float, ...], ...]
    of_neurons: tuple[tuple[float, ...], ...]
    of_layer: tuple[float, ...]
    outside: tuple[float, ...]
    machine: Mapping[str, Any]

    def prices(self, lengths: Sequence[int] | NDArray[np.int64], *, fixed: float = 0.0) -> Prices:
        """Seconds of each part for a row, on average.

        Between lengths that were measured, and beyond the longest, seconds are taken to grow evenly.

        Args:
            lengths: (R,) tokens of the rows.
            fixed: seconds a row for what is not of the backbone: tokenization, head (from `share_besides`).
        """
        weight_G = _weights(np.asarray(lengths, dtype=np.float64), np.asarray(self.lengths, dtype=np.float64))
        return Prices(
            heads=_between(self.heads, weight_G @ np.asarray(self.of_heads)),
            neurons=_between(self.neurons, weight_G @ np.asarray(self.of_neurons)),
            layer=float(weight_G @ np.asarray(self.of_layer)),
            outside=float(weight_G @ np.asarray(self.outside)) + fixed,
        )

    def seconds(self, sizes: Sizes, lengths: Sequence[int] | NDArray[np.int64], *, fixed: float = 0.0) -> float:
        """Seconds of a model of these sizes for a row, on average.

        Args:
            sizes: heads and neurons of each layer; None for one that is not there.
            lengths: (R,) tokens of the rows.
            fixed: seconds a row for what is not of the backbone.
        """
        return self.prices(lengths, fixed=fixed).total(sizes)

    @classmethod
    def measure(
        cls,
        backbone: Backbone,
        lengths: Sequence[int] = LENGTHS,
        *,
        seconds: float = 12.0,
        advance: Callable[[float], None] = lambda share: None,
    ) -> LatencyTable:
        """Time the layers of a backbone, on its device, in its precision, with torch's number of threads.

        Args:
            backbone: `Pretrained`; stays as it is.
            lengths: tokens of a row to time, at least one; those that the backbone can't read are left out.
            seconds: that it may take; more where the model is so large that three turns take longer.
            advance: told which share in [0, 1] is done.

        Raises:
            UserError: the backbone has no layers that can be pruned, or reads no rows of these lengths.
        """
        limit = backbone.max_length or max(lengths, default=0)
        used = tuple(sorted({length for length in lengths if 1 <= length <= limit}))
        if not used:
            raise UserError(f"the lengths to time must be in 1 … {limit}, got {list(lengths)}")
        dense = dense_stack(backbone)
        part = anatomy(dense.model)[0]
        heads, neurons = _grid(part.heads, _HEADS, first=1), _grid(part.neurons, _NEURONS)
        variants = _variants(heads, neurons)
        groups = [variants[i : i + _TOGETHER] for i in range(0, len(variants), _TOGETHER)]
        shares: list[list[float]] = []  # of the dense stack's seconds, for each variant and length
        references: list[list[list[Times]]] = []
        for number, group in enumerate(groups):
            advance(number / len(groups))
            times = alternate([dense, *(pruned_stack(dense, *one) for one in group)], used, seconds / len(groups))
            references.append(times[0])
            # The machine is not always as fast: what counts is the share of what the dense stack took just before.
            shares += [[share(*pair) for pair in zip(one, times[0], strict=True)] for one in times[1:]]
        advance(1.0)
        dense_G = [[one for of_group in references for one in of_group[place]] for place in range(len(used))]
        of_layer, of_heads, of_neurons = [], [], []
        for place, found in enumerate(dense_G):
            layer = median(one.stack for one in found) / len(anatomy(dense.model))
            fitted = _fit(heads, neurons, variants, [layer * one[place] for one in shares], layer)
            of_layer.append(float(fitted[0]))
            of_heads.append(tuple(np.cumsum([0.0, *fitted[1 : len(heads)]]).tolist()))
            of_neurons.append(tuple(np.cumsum([0.0, *fitted[len(heads) :]]).tolist()))
        outside = tuple(median(one.outside for one in found) for found in dense_G)
        parts = (tuple(of_heads), tuple(of_neurons), tuple(of_layer))
        return cls(used, heads, neurons, *parts, outside, _machine(backbone))

    @classmethod
    def cached(
        cls, backbone: Backbone, lengths: Sequence[int] = LENGTHS, *, folder: Path | None = None, **options: Any
    ) -> LatencyTable:
        """As `measure`, but once for a machine, a kind of layer and lengths; kept as JSON.

        Args:
            backbone: as for `measure`.
            lengths: as for `measure`.
            folder: where tables are kept; None for `latency` in the cache.
            **options: of `measure`.
        """
        from llm_arch.data.store import cache_root, key_of

        model: Any = backbone.model
        largest = max(anatomy(model), key=size)
        made_of = {
            "version": _VERSION,
            "kind": [model.config.model_type, backbone.hidden_size, largest.heads, *size(largest)],
            "layers": len(anatomy(model)),
            "layout": getattr(backbone, "layout", None),
            "limit": backbone.max_length,
            "lengths": sorted(lengths),
            "machine": _machine(backbone),
        }
        file = (folder or cache_root() / "latency") / f"{key_of(made_of)}.json"
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged: measured anew
            table = cls.measure(backbone, lengths, **options)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{time.time_ns()}")
        temporary.write_text(json.dumps(table.to_dict()) + "\n", encoding="utf-8")
        temporary.replace(file)
        return table

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyTable:
        """The inverse of `to_dict`."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value

        return cls(**{f.name: tuples(values[f.name]) for f in fields(cls)})


def share_besides(predict: Callable[[], Any], backbone: nn.Module, *, seconds: float = 1.0) -> float:
    """What a prediction takes besides its backbone, as a share of what that takes: a median.

    That is tokenization, batching, head and decoding. The machine is not always as fast as when a table was measured,
    and a share holds.

    Args:
        predict: predicts once, or many rows one by one.
        backbone: what it calls, once or more.
        seconds: that it may take.
    """
    clock = clock_of(next(backbone.parameters()).device)
    inside: list[float] = []

    def before(*_: Any) -> None:
        inside.append(-clock())

    def after(*_: Any) -> None:
        inside[-1] += clock()

    hooks = [backbone.register_forward_pre_hook(before), backbone.register_forward_hook(after)]
    found: list[float] = []
    try:
        predict()
        end = time.perf_counter() + seconds
        while len(found) < FEWEST_TURNS or time.perf_counter() < end:
            inside.clear()
            start = clock()
            predict()
            found.append((clock() - start) / sum(inside) - 1)
    finally:
        for hook in hooks:
            hook.remove()
    return median(found)


# The steps that are timed, and what each of them costs


def _grid(most: int, shares: Sequence[float], first: int = 0) -> tuple[int, ...]:
    return tuple(sorted({min(first, most), *(round(share * most) for share in shares)}))


def _variants(heads: Sequence[int], neurons: Sequence[int]) -> list[tuple[int, int]]:
    """The heads and neurons of the layers to time: each kind alone made fewer, and both together."""
    alone = [(h, neurons[-1]) for h in heads[:-1]] + [(heads[-1], n) for n in neurons[:-1]]
    both = [(heads[i * (len(heads) - 1) // len(neurons)], neurons[i]) for i in range(1, len(neurons) - 1)]
    crossed = [(heads[0], neurons[-2]), (heads[-2], neurons[1]), (heads[1], neurons[1])]
    return list(dict.fromkeys([*alone, *both, *crossed]))


def _fit(
    heads: Sequence[int],
    neurons: Sequence[int],
    variants: Sequence[tuple[int, int]],
    seconds: Sequence[float],
    dense: float,
) -> Values:
    """What a layer costs bare, and each further step of heads and of neurons: the least squares of relative errors.

    No step costs less than nothing, which takes away much of the noise.

    Args:
        heads: the steps of heads.
        neurons: the steps of neurons.
        variants: heads and neurons of the layers that were timed.
        seconds: what each took.
        dense: what a whole layer took, which was timed most often.
    """
    rows = [
        [1.0, *(float(h >= step) for step in heads[1:]), *(float(n >= step) for step in neurons[1:])]
        for h, n in [*variants, (heads[-1], neurons[-1])]
    ]
    values = np.array([*seconds, dense])
    weight = np.array([1.0] * len(variants) + [4.0])[:, None]
    relative = np.array(rows) * weight / values[:, None]
    square, right = relative.T @ relative, (relative * weight).sum(0)
    steps = np.zeros(len(right))
    for _ in range(3000):  # one after another, each to its best: the problem is small and convex
        for i in range(len(steps)):
            steps[i] = max(0.0, steps[i] + (right[i] - square[i] @ steps) / square[i, i])
    return steps


def _machine(backbone: Backbone) -> dict[str, Any]:
    from llm_arch.lineage import hardware

    weight = backbone.embeddings.weight
    found = hardware()
    name = found["cpu"] if weight.device.type == "cpu" else torch.cuda.get_device_name(weight.device)
    return {
        "device": name,
        "threads": torch.get_num_threads() if weight.device.type == "cpu" else None,
        "torch": torch.__version__,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "products": torch.get_float32_matmul_precision(),
    }


# Between what was measured


def _weights(lengths_R: Values, grid_G: Values) -> Values:
    """(G,) what each measured length counts for the mean over rows."""
    if lengths_R.size == 0 or lengths_R.min() < 1:
        raise UserError("the lengths of rows must be at least 1, and there must be some")
    weight_G = np.zeros(len(grid_G))
    if len(grid_G) == 1:
        return weight_G + 1.0
    right_R = np.searchsorted(grid_G, lengths_R).clip(1, len(grid_G) - 1)
    share_R = (lengths_R - grid_G[right_R - 1]) / (grid_G[right_R] - grid_G[right_R - 1])
    share_R = share_R.clip(min=0)  # what is shorter than the shortest takes as long
    np.add.at(weight_G, right_R, share_R)
    np.add.at(weight_G, right_R - 1, 1 - share_R)
    return weight_G / len(lengths_R)


def _between(counts: Sequence[int], seconds: Values) -> Values:
    """Seconds of 0, 1, … up to the most that was measured."""
    return np.interp(np.arange(counts[-1] + 1), counts, seconds).astype(np.float64)


def _tuples(values: Values) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))
