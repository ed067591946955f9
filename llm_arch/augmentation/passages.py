"""Texts of a row whose words may be edited, while what is labelled in them stays as it is.

A word is a run of letters and digits, joined over a single hyphen, apostrophe or the like ("don't", "3.5"), or one
character of a script without spaces. Words that overlap what is labelled are none that may be edited, nor are those
that touch a word of another script, since an edit could make them one word with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from llm_arch.data.words import Word, joined, split

# What is put in place of some words, by their number among those that may be edited; no text deletes the word.
Edits = Mapping[int, tuple[str, ...]]
Shift = Callable[[int], int]

_JOINS = frozenset("'’-–_.,:/@&")


class Marks(NamedTuple):
    """What is labelled in a text.

    Attributes:
        kept: first character and end of each labelled piece, in any order; they may overlap.
        moved: takes a function that tells where a border of a piece is now, and gives the cells that say so.
    """

    kept: Sequence[Word] = ()
    moved: Callable[[Shift], dict[str, Any]] = lambda shift: {}


class Passage(ABC):
    """A text of a row with the words that may be edited.

    Attributes:
        column: the column it stands in.
        text: the whole text.
        words: first character and end of each word that may be edited, in order.
        unspaced: of each, whether it is a character of a script without spaces. Words change places, or are copied to
            others, within their own kind.
        deletable: of each, whether it may be left out.
    """

    column: str
    text: str
    words: list[Word]
    unspaced: list[bool]
    deletable: list[bool]

    @cached_property
    def texts(self) -> list[str]:
        """The words themselves."""
        return [self.text[start:end] for start, end in self.words]

    @abstractmethod
    def edited(self, edits: Edits) -> dict[str, Any]:
        """The cells of the row that other words change, those that say where things are included."""


class TextPassage(Passage):
    """A text in one cell.

    Args:
        column: its column.
        text: the text.
        marks: what is labelled in it.
    """

    def __init__(self, column: str, text: str, marks: Sequence[Marks] = ()) -> None:
        self.column, self.text, self.marks = column, text, marks
        self._kept = _union(piece for mark in marks for piece in mark.kept)
        found = [word for word in editable_words(text) if not self._is_kept(*word)]
        self.words = found
        self.unspaced = [is_unspaced(text[start:end]) for start, end in found]
        self.deletable = [True] * len(found)

    def edited(self, edits: Edits) -> dict[str, Any]:
        """The text, and where its labelled pieces are now."""
        text, shift = self._replaced(edits)
        cells: dict[str, Any] = {self.column: text}
        for mark in self.marks:
            cells |= mark.moved(shift)
        return cells

    def _replaced(self, edits: Edits) -> tuple[str, Shift]:
        pieces, ends, grown, last = [], [0], [0], 0
        for i in sorted(edits):
            start, end = self.words[i]
            new = ("" if self.unspaced[i] else " ").join(edits[i])
            if not edits[i] and not self.unspaced[i]:
                start, end = self._with_space(start, end, last)
            pieces += [self.text[last:start], new]
            ends.append(end)
            grown.append(len(new) - (end - start))
            last = end
        moved = list(accumulate(grown))
        return "".join([*pieces, self.text[last:]]), lambda place: place + moved[bisect_right(ends, place) - 1]

    def _with_space(self, start: int, end: int, free_from: int) -> Word:
        """A word with one of the white spaces around it, which would stand twice without the word."""
        if start > free_from and self._is_space(start - 1):
            return start - 1, end
        return start, end + self._is_space(end)

    def _is_space(self, place: int) -> bool:
        return self.text[place : place + 1].isspace() and not self._is_kept(place, place + 1)

    def _is_kept(self, start: int, end: int) -> bool:
        after = bisect_right(self._kept, start, key=lambda piece: piece[1])  # the first that ends behind the start
        return after < len(self._kept) and self._kept[after][0] < end


class TokenPassage(Passage):
    """A text given as tokens, each of which may have a tag; those with another tag than O are kept.

    A token right behind a tagged one is not deleted, so that no two entities come to touch.

    Args:
        columns: columns of the tokens and of the tags.
        tokens: the tokens.
        tags: their tags, or None.
        text_column: column that repeats the tokens as a text, if the row has one.
    """

    def __init__(
        self, columns: tuple[str, str], tokens: Sequence[str], tags: Sequence[str] | None, text_column: str | None
    ) -> None:
        self.column, self.tags_column, self.text_column = *columns, text_column
        self.tokens, self.tags, self.text = tokens, tags, " ".join(tokens)
        outside = [True] * len(tokens) if tags is None else [tag == "O" for tag in tags]
        self.places = [i for i, token in enumerate(tokens) if outside[i] and any(map(str.isalnum, token))]
        spans = joined(tokens)
        self.words = [spans[i] for i in self.places]
        self.unspaced = [False] * len(self.places)
        self.deletable = [i == 0 or outside[i - 1] for i in self.places]

    def edited(self, edits: Edits) -> dict[str, Any]:
        """The tokens, and their tags if there are any."""
        by_token = {self.places[i]: new for i, new in edits.items()}
        tokens: list[str] = []
        tags: list[str] = []
        for i, token in enumerate(self.tokens):
            new = by_token.get(i, (token,))
            tokens += new
            tags += [self.tags[i] if self.tags else "O"] * len(new)
        cells: dict[str, Any] = {self.column: tokens}
        if self.tags is not None:
            cells[self.tags_column] = tags
        if self.text_column is not None:
            cells[self.text_column] = " ".join(tokens)
        return cells


def editable_words(text: str) -> list[Word]:
    """The words of a text that stand by themselves."""
    found: list[Word] = []
    for start, end in split(text):
        if not text[start].isalnum():
            continue
        if found and start == found[-1][1] + 1 and text[start - 1] in _JOINS:
            before = text[found[-1][0] : found[-1][1]]
            if not (is_unspaced(before) or is_unspaced(text[start:end])):
                found[-1] = found[-1][0], end
                continue
        found.append((start, end))
    touching: set[int] = set()
    for i, (one, other) in enumerate(pairwise(found)):
        if one[1] == other[0] and is_unspaced(text[slice(*one)]) != is_unspaced(text[slice(*other)]):
            touching |= {i, i + 1}
    return [word for i, word in enumerate(found) if i not in touching]


@lru_cache(maxsize=65536)
def is_unspaced(word: str) -> bool:
    """Whether a word is a character of a script without spaces: written twice, it is two words."""
    return len(split(word * 2)) == 2


def _union(pieces: Any) -> list[Word]:
    """Pieces that overlap or touch as one, in order."""
    found: list[Word] = []
    for start, end in sorted(pieces):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found
