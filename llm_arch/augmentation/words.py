"""Edits of single words (EDA; Wei and Zou 2019): words change places, go, or are said twice.

EDA's fourth operation, synonyms, needs a lexicon of the language; `masked.py` finds words that fit with a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, get_args

from llm_arch.augmentation.base import Method, Request, checked_share, how_many
from llm_arch.augmentation.passages import Edits, Passage
from llm_arch.augmentation.rows import Values
from llm_arch.types import UserError

Operation = Literal["swap", "delete", "insert", "typo"]
_SHORTEST = 4  # letters of a word that may get a typo


class WordEdits(Method):
    """One operation a new row, on a share of the words of each of its texts.

    - `swap`: two words change places.
    - `delete`: a word goes.
    - `insert`: a copy of a word of the text is put before another.
    - `typo`: within a word of at least four letters two change places, or one goes or is doubled; the first stays.

    Words within what is labelled stay, and nothing is put between them. Where the operation drawn can't be done, the
    next is; where none can, as in a text of one word, there is no new row.

    Args:
        operations: the operations to draw from.
        share: share of the words that are edited, in (0, 1]; at least one word is.
    """

    name = "words"

    def __init__(self, operations: Sequence[Operation] = ("swap", "delete", "insert"), *, share: float = 0.1) -> None:
        self.operations = tuple(operations)
        self.share = checked_share(share)
        unknown = [name for name in self.operations if name not in get_args(Operation)]
        if unknown or not self.operations:
            raise UserError(f"operations must be some of {', '.join(get_args(Operation))}, got {list(operations)}")

    def __call__(self, requests: Sequence[Request]) -> list[Values | None]:
        """New rows."""
        return [self._edited(request) for request in requests]

    def _edited(self, request: Request) -> Values | None:
        random = Random(request.key)
        for name in random.sample(self.operations, len(self.operations)):
            found = request.row.edited([self._edits(name, passage, random) for passage in request.row.passages])
            if found is not None:
                return found
        return None

    def _edits(self, name: Operation, passage: Passage, random: Random) -> Edits:
        count = how_many(self.share, len(passage.words))
        return _OPERATIONS[name](passage, count, random) if passage.words else {}


def swap(passage: Passage, count: int, random: Random) -> Edits:
    """So many times two different words of a kind change places."""
    new = list(passage.texts)
    for _ in range(count):
        one = random.randrange(len(new))
        others = [i for i in _alike(passage, one) if new[i].casefold() != new[one].casefold()]
        if others:
            other = random.choice(others)
            new[one], new[other] = new[other], new[one]
    return {i: (text,) for i, text in enumerate(new) if text != passage.texts[i]}


def delete(passage: Passage, count: int, random: Random) -> Edits:
    """So many words go; one that could be edited stays."""
    choices = [i for i, may in enumerate(passage.deletable) if may]
    return {i: () for i in random.sample(choices, min(count, len(choices), len(passage.words) - 1))}


def insert(passage: Passage, count: int, random: Random) -> Edits:
    """Copies of so many words are put before others of their kind."""
    edits: dict[int, tuple[str, ...]] = {}
    for _ in range(count if len(passage.words) > 1 else 0):
        place = random.randrange(len(passage.words))
        copied = passage.texts[random.choice(_alike(passage, place))]
        edits[place] = (copied, *edits.get(place, (passage.texts[place],)))
    return edits


def typo(passage: Passage, count: int, random: Random) -> Edits:
    """So many words are misspelled."""
    texts = passage.texts
    choices = [i for i, text in enumerate(texts) if len(text) >= _SHORTEST and text.isalpha()]
    edits: dict[int, tuple[str, ...]] = {}
    for i in random.sample(choices, min(count, len(choices))):
        word = texts[i]
        place = random.randrange(1, len(word) - 1)
        before, letter, after, behind = word[:place], word[place], word[place + 1], word[place + 2 :]
        ways = [before + after + behind, before + letter + letter + after + behind]
        if letter != after:
            ways.append(before + after + letter + behind)
        edits[i] = (random.choice(ways),)
    return edits


def _alike(passage: Passage, one: int) -> list[int]:
    """The words of a word's kind, itself among them."""
    return [i for i, kind in enumerate(passage.unspaced) if kind == passage.unspaced[one]]


_OPERATIONS: dict[str, Callable[[Passage, int, Random], Edits]] = {
    "swap": swap,
    "delete": delete,
    "insert": insert,
    "typo": typo,
}
