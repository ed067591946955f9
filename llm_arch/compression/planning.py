"""Which heads, neurons and layers a model keeps: the most important ones of the sizes that were chosen.

Legend: L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from llm_arch.compression.importance import Scores
from llm_arch.compression.prices import Sizes
from llm_arch.compression.structure import Shape, Structure
from llm_arch.types import UserError


def most_important(scores: Scores, sizes: Sizes, of: Shape) -> Structure:
    """Of each layer that stays, the heads and neurons with the greatest scores.

    Args:
        scores: of the model as it is now.
        sizes: for each of its layers how many heads and neurons stay, or None to remove it.
        of: its shape.
    """
    kept = [(layer, *size) for layer, size in enumerate(sizes) if size is not None]
    return Structure(
        tuple(layer for layer, _, _ in kept),
        tuple(_largest(scores.heads[layer], heads) for layer, heads, _ in kept),
        tuple(_largest(scores.neurons[layer], neurons) for layer, _, neurons in kept),
        of,
    )


@dataclass(frozen=True)
class Shares:
    """The same share of every layer that stays.

    Attributes:
        heads: share of a layer's heads to keep, in [0, 1]; rounded, and 0 removes them all.
        neurons: share of its neurons, likewise; rounded to a multiple.
        layers: how many layers to keep, or which, counted from 0; None for all.
    """

    heads: float = 1.0
    neurons: float = 1.0
    layers: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share to keep, in [0, 1], got {getattr(self, name)}")
        if self.heads == self.neurons == 0:
            raise UserError("heads and neurons are both 0, which leaves nothing of the model; keep some of one")

    def sizes(self, scores: Scores, kept: Structure, multiple: int, progress: float = 1.0) -> Sizes:
        """What that means for each layer of a model.

        Args:
            scores: which layers stay where only their number is told.
            kept: what the model still has of the one that shares are of.
            multiple: of the number of neurons.
            progress: the share of what shall go that is gone afterwards, in (0, 1]; layers go with the last.

        Raises:
            UserError: there are fewer layers, or one is named that does not exist.
        """
        heads, neurons = (1 - progress * (1 - share) for share in (self.heads, self.neurons))
        stay = self._layers(scores, kept)  # which also complains, the first time already
        if self.neurons == 1:
            multiple = 1  # all stay, whatever their number
        return [
            (
                min(now[0], round(heads * kept.of.heads[layer])),
                min(now[1], round(neurons * kept.of.neurons[layer] / multiple) * multiple),
            )
            if layer in stay or progress < 1
            else None
            for layer, now in zip(kept.layers, zip(kept.sizes.heads, kept.sizes.neurons, strict=True), strict=True)
        ]

    def _layers(self, scores: Scores, kept: Structure) -> set[int]:
        if self.layers is None:
            return set(kept.layers)
        if isinstance(self.layers, int):
            if not 1 <= self.layers <= len(kept.layers):
                raise UserError(f"layers must be between 1 and {len(kept.layers)}, got {self.layers}")
            return {kept.layers[place] for place in _largest(scores.layers, self.layers)}
        if wrong := sorted(set(self.layers) - set(range(kept.of.layers))):
            raise UserError(f"layers: the model has layers 0 to {kept.of.layers - 1}, and {wrong[0]} is none of them")
        if not self.layers:
            raise UserError("layers names none, which leaves nothing of the model; name one at least")
        return set(self.layers)


def _largest(scores: Tensor, count: int) -> tuple[int, ...]:
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:count].tolist()))
