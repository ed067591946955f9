"""Which layers, attention heads and neurons of a model are kept: what a pruned model directory records.

Legend: L layers, H_l attention units and N_l neurons of layer l.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_arch.types import UserError

if TYPE_CHECKING:
    from torch import nn

# More are taken for a damaged record.
MOST_LAYERS = 1024
LARGEST = 2**20  # heads or neurons of a layer
_RUNS = re.compile(r"\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*")


@dataclass(frozen=True)
class Shape:
    """How large a model is in what can be pruned.

    Attributes:
        layers: L, at least 1.
        heads: (L,) attention units of each layer: query heads, or groups of them where they share keys and values.
        neurons: (L,) neurons of each layer.
    """

    layers: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        if not _is_int(self.layers) or not 1 <= self.layers <= MOST_LAYERS:
            raise UserError(f"a model has from 1 to {MOST_LAYERS} layers, got {self.layers!r}")
        for name, sizes in (("heads", self.heads), ("neurons", self.neurons)):
            if len(sizes) != self.layers:
                raise UserError(f"{self.layers} layers need as many numbers of {name}, got {len(sizes)}")
            wrong = [size for size in sizes if not _is_int(size) or not 0 <= size <= LARGEST]
            if wrong:
                raise UserError(f"a layer has from 0 to {LARGEST:,} {name}, got {wrong[0]!r}")

    def __str__(self) -> str:
        """For messages."""
        heads, neurons = (_range(numbers) for numbers in (self.heads, self.neurons))
        return f"{self.layers} layers with {heads} heads and {neurons} neurons"


@dataclass(frozen=True)
class Structure:
    """What is kept of a model; indices count from 0, in rising order.

    A layer of which neither heads nor neurons are kept is not kept at all.

    Attributes:
        layers: (K,) the kept layers, at least one.
        heads: for each kept layer the kept attention units.
        neurons: for each kept layer the kept neurons.
        of: the model before pruning.

    Raises:
        UserError: an index is out of range, out of order or there twice, lengths do not fit, or nothing is kept.
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    of: Shape

    def __post_init__(self) -> None:
        _check(self.layers, self.of.layers, "layers")
        for name, kept, sizes in (("heads", self.heads, self.of.heads), ("neurons", self.neurons, self.of.neurons)):
            if len(kept) != len(self.layers):
                raise UserError(f"{len(self.layers)} kept layers need as many lists of {name}, got {len(kept)}")
            for layer, indices in zip(self.layers, kept, strict=True):
                _check(indices, sizes[layer], f"{name} of layer {layer}")
        alive = [i for i, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)) if heads or neurons]
        if not alive:
            raise UserError("nothing would be left of the model; keep a head or a neuron of one layer at least")
        for name in ("layers", "heads", "neurons"):
            object.__setattr__(self, name, tuple(getattr(self, name)[i] for i in alive))

    @classmethod
    def whole(cls, model: nn.Module | Shape) -> Structure:
        """All of a model of transformers (as `anatomy` takes it) or of a shape is kept."""
        of = model if isinstance(model, Shape) else shape_of(model)
        heads, neurons = ((tuple(map(_all, sizes))) for sizes in (of.heads, of.neurons))
        return cls(_all(of.layers), heads, neurons, of)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is pruned."""
        sizes = self.sizes
        return (sizes.layers, sizes.heads, sizes.neurons) == (self.of.layers, self.of.heads, self.of.neurons)

    @property
    def sizes(self) -> Shape:
        """The shape of what is kept."""
        return Shape(len(self.layers), tuple(map(len, self.heads)), tuple(map(len, self.neurons)))

    def then(self, later: Structure) -> Structure:
        """Both one after the other.

        Args:
            later: what is kept of what this one leaves.

        Raises:
            UserError: it is of a model of another shape.
        """
        if later.of != self.sizes:
            raise UserError(f"what is to be kept is of a model of {later.of}, but this one has {self.sizes}")
        pairs = list(zip(later.layers, later.heads, later.neurons, strict=True))
        return Structure(
            tuple(self.layers[layer] for layer, _, _ in pairs),
            tuple(tuple(self.heads[layer][i] for i in heads) for layer, heads, _ in pairs),
            tuple(tuple(self.neurons[layer][i] for i in neurons) for layer, _, neurons in pairs),
            self.of,
        )

    def within(self, larger: Structure) -> Structure:
        """What is to be kept of what `larger` leaves, so that this one is left: `larger.then` of it is this one.

        Raises:
            UserError: it is no part of the other.
        """
        try:
            places = [larger.layers.index(layer) for layer in self.layers]
            heads, neurons = (
                tuple(
                    tuple(there[place].index(unit) for unit in units) for place, units in zip(places, own, strict=True)
                )
                for there, own in ((larger.heads, self.heads), (larger.neurons, self.neurons))
            )
        except ValueError:
            heads = None
        if heads is None or larger.of != self.of:
            raise UserError(f"{self.sizes} of {self.of} are no part of {larger.sizes} of {larger.of}")
        return Structure(tuple(places), heads, neurons, larger.sizes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; indices as runs, such as `0-5,8`."""
        return {
            "of": {"heads": list(self.of.heads), "neurons": list(self.of.neurons)},
            "layers": [
                {"layer": layer, "heads": _runs(heads), "neurons": _runs(neurons)}
                for layer, heads, neurons in zip(self.layers, self.heads, self.neurons, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, values: Any) -> Structure:
        """What `to_dict` gave, from whomever it comes.

        Raises:
            UserError: it is none of these, with the reason.
        """
        try:
            of_heads, of_neurons = (tuple(values["of"][name]) for name in ("heads", "neurons"))
            kept = [(entry["layer"], entry["heads"], entry["neurons"]) for entry in values["layers"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                "the record of what was pruned needs `of` (heads and neurons of each layer) and `layers` (layer, heads "
                "and neurons of each that is kept)"
            ) from error
        return cls(
            tuple(layer for layer, _, _ in kept),
            tuple(_indices(heads) for _, heads, _ in kept),
            tuple(_indices(neurons) for _, _, neurons in kept),
            Shape(len(of_heads), of_heads, of_neurons),
        )


def shape_of(model: nn.Module) -> Shape:
    """The shape of a model of transformers as it is now, dense or pruned."""
    from llm_arch.compression.anatomy import anatomy

    parts = anatomy(model)
    return Shape(len(parts), tuple(part.heads for part in parts), tuple(part.neurons for part in parts))


def _check(indices: Sequence[int], size: int, what: str) -> None:
    wrong = [index for index in indices if not _is_int(index) or not 0 <= index < size]
    if wrong:
        raise UserError(f"there are {size} {what}, counted from 0, and {wrong[0]!r} is none of them")
    if any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise UserError(f"the kept {what} must be in rising order, each once, got {_told_indices(indices)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(size: int) -> tuple[int, ...]:
    return tuple(range(size))


def _runs(indices: Sequence[int]) -> str:
    """0, 1, 2, 5 → `0-2,5`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _indices(runs: Any) -> tuple[int, ...]:
    if runs == "":
        return ()
    if not isinstance(runs, str) or not _RUNS.fullmatch(runs):
        raise UserError(
            f"kept heads and neurons are recorded as runs of numbers, such as '0-5,8', got {str(runs)[:40]!r}"
        )
    found: list[int] = []
    for run in runs.split(","):
        first, _, last = run.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
        if len(found) > LARGEST:
            raise UserError(f"a layer has at most {LARGEST:,} heads or neurons, and {runs[:40]!r} names more")
    return tuple(found)


def _told_indices(indices: Iterable[int]) -> str:
    told = ", ".join(map(str, indices))
    return told if len(told) < 60 else f"{told[:60]} …"


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else "/".join(map(str, numbers))
