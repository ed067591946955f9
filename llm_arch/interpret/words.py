"""The tokens of a row as the words or single tokens that they show."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from llm_arch.data.origins import Origins, Place
from llm_arch.data.words import Word, split


class Unit(NamedTuple):
    """Some characters of a text that get one score.

    Attributes:
        place: which of the row's texts, the first character, and the one after the last.
        tokens: the row's tokens that show them, ascending; several where a text stands in several windows or choices.
    """

    place: Place
    tokens: tuple[int, ...]


def words_of(origins: Origins) -> list[Unit]:
    """The words of a row that its tokens show, text by text in order; those that share a token are one.

    A token that shows nothing but white space belongs to the word behind it.
    """
    found: list[Unit] = []
    for number, text in enumerate(origins.texts.values()):
        words = split(text)
        if not words:
            continue
        ends, starts = [end for _, end in words], [start for start, _ in words]
        own: list[list[int]] = [[] for _ in words]
        joined = set()  # words that go on the one before them
        for token, (place, start, end) in enumerate(origins.places):
            if place != number:
                continue
            first = min(bisect_right(ends, start), len(words) - 1)
            last = max(first, bisect_left(starts, end) - 1)
            own[first].append(token)
            joined |= set(range(first + 1, last + 1))
        found += _groups(number, words, own, joined)
    return found


def _groups(text: int, words: Sequence[Word], own: Sequence[Sequence[int]], joined: set[int]) -> list[Unit]:
    found: list[Unit] = []
    first = 0
    for i in range(1, len(words) + 1):
        if i in joined:
            continue
        tokens = sorted(token for word in own[first:i] for token in word)
        if tokens:
            found.append(Unit((text, words[first][0], words[i - 1][1]), tuple(tokens)))
        first = i
    return found


def tokens_of(origins: Origins) -> list[Unit]:
    """The tokens of a row that show text, in order; what shows the same characters several times is one."""
    found: dict[Place, list[int]] = {}
    for token, place in enumerate(origins.places):
        if place[0] >= 0:
            found.setdefault(place, []).append(token)
    return [Unit(place, tuple(tokens)) for place, tokens in found.items()]


def unread(origins: Origins, units: Sequence[Unit]) -> list[Place]:
    """The runs of words that no token shows, without the white space around them."""
    found: list[Place] = []
    for number, text in enumerate(origins.texts.values()):
        shown = [place for place, _ in units if place[0] == number]
        begins = [start for _, start, _ in shown]
        run: list[int] = []
        for start, end in split(text):
            at = bisect_right(begins, start) - 1
            if at >= 0 and shown[at][2] >= end:
                if run:
                    found.append((number, run[0], run[1]))
                run = []
            else:
                run = [run[0] if run else start, end]
        if run:
            found.append((number, run[0], run[1]))
    return found
