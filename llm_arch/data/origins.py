"""Which characters of which text each token of a row shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Place = tuple[int, int, int]  # which of the row's texts, the first character, and the one after the last
NOWHERE: Place = (-1, 0, 0)  # of tokens that show no text: special ones, markers, what parts texts


class Origins(NamedTuple):
    """The texts of a row, and where its tokens come from.

    Attributes:
        texts: the texts by name, usually that of their column.
        places: of each token of the row, in the order of a batch: windows one after another, special tokens too.
    """

    texts: dict[str, str]
    places: list[Place]


def places_of(encoding: Any) -> list[Place]:
    """The places of an encoding's tokens, the first text of a pair being 0 and the second 1."""
    pairs = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    return [NOWHERE if text is None else (text, *offsets) for text, offsets in pairs]


def with_nowhere(places: Sequence[Any]) -> list[Place]:
    """Places among which token ids may stand, which show no text."""
    return [place if isinstance(place, tuple) else NOWHERE for place in places]
