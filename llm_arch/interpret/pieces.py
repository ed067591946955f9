"""What is shown of an explanation, wherever that is: texts in pieces, each with the strength of its colour."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from llm_arch.interpret.explanation import Explanation, WordShare

# What speaks for and against: blue and orange, which look different to everyone.
FOR, AGAINST = (67, 147, 229), (240, 130, 40)
# How much of a colour lies over what is behind it where a score is largest: letters, black or white as they may be,
# keep a contrast of at least 4.5.
STRONGEST = 0.6
_LONE = re.compile("[\ud800-\udfff]")


class Piece(NamedTuple):
    """Characters of a text that are shown alike.

    Attributes:
        text: the characters.
        word: the word that they are; None for what lies between words.
        share: its score as a share of the largest one of the row, in [-1, 1]; 0 between words.
        read: whether the model has read them.
    """

    text: str
    word: WordShare | None = None
    share: float = 0.0
    read: bool = True


def pieces_of(explanation: Explanation) -> dict[str, list[Piece]]:
    """The texts of a row by name, each cut into pieces that together are the text."""
    scores = [abs(word.score) for word in explanation.words if math.isfinite(word.score)]
    largest = max(scores, default=0.0)
    found = {}
    for name, text in explanation.texts.items():
        unread = [(one.start, one.end) for one in explanation.unread if one.text == name]
        borders = sorted({0, len(text), *(place for one in unread for place in one)})
        pieces: list[Piece] = []
        at = 0
        for word in sorted((one for one in explanation.words if one.text == name), key=lambda one: one.start):
            pieces += _between(text, at, word.start, unread, borders)
            pieces.append(Piece(text[word.start : word.end], word, _share(word.score, largest)))
            at = word.end
        found[name] = [*pieces, *_between(text, at, len(text), unread, borders)]
    return found


def printable(text: str) -> str:
    """The text, with halves of characters, which no file can hold, replaced."""
    return _LONE.sub("\ufffd", text)


def fault_of(explanation: Explanation) -> str:
    """How far the scores are from adding up, in words; empty where they need not."""
    return "" if explanation.error is None else f"scores miss the difference by {explanation.error:.2%}"


def _share(score: float, largest: float) -> float:
    return score / largest if largest and math.isfinite(score) else 0.0


def _between(text: str, start: int, end: int, unread: list[tuple[int, int]], borders: list[int]) -> list[Piece]:
    """The characters from `start` to `end`, of which no word was scored."""
    cuts = [start, *borders[bisect_right(borders, start) : bisect_right(borders, end - 1)], end]
    return [
        Piece(text[first:last], read=not any(a <= first and last <= b for a, b in unread))
        for first, last in pairwise(cuts)
        if first < last
    ]
