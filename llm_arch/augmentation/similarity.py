"""Texts that say the same: equal but for case and punctuation, or of nearly the same runs of words.

Two texts are near when their sets of shingles, runs of two consecutive words, overlap to a share (Jaccard) of at least
a threshold. The search is exact: two sets that overlap so much share one of their few rarest shingles, so that only
these need be looked up (prefix filtering; Chaudhuri et al. 2006, Bayardo et al. 2007).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from llm_arch.types import UserError

_WORD = re.compile(r"\w+")
_SLACK = 1e-9  # a product such as 0.7 · 10 must not be rounded up


def normalized(texts: Sequence[str]) -> str:
    """Words without case and punctuation, text by text; of a text without words all of it."""
    return "\n".join(" ".join(_WORD.findall(text.casefold())) or text.strip() for text in texts)


def shingles(text: str) -> frozenset[str]:
    """Every two consecutive words of a normalized text; of a single word that one."""
    words = text.split()
    return frozenset(map(" ".join, pairwise(words))) if len(words) > 1 else frozenset(words)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """What two sets share, over what both have."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


class TextIndex:
    """Tells whether a text resembles one that was added.

    Args:
        rows: the texts to begin with, one or several a row.
        near: the share of shingles from which texts are near, in (0, 1]; None finds equal ones alone.
    """

    def __init__(self, rows: Iterable[Sequence[str]] = (), near: float | None = None) -> None:
        if near is not None and not 0 < near <= 1:
            raise UserError(f"near_duplicates must be in (0, 1], got {near}")
        self.near = near
        self._equal: set[str] = set()
        self._sets: list[frozenset[str]] = []
        self._texts: list[str] = []  # of each set, normalized
        self._where: defaultdict[str, list[int]] = defaultdict(list)
        keys = list(dict.fromkeys(map(normalized, rows)))
        # Any fixed order of shingles is right; with rare ones first few texts have to be compared.
        self._count = Counter(one for key in keys for one in shingles(key)) if near is not None else Counter()
        for key in keys:
            self._add(key)

    def holds(self, texts: Sequence[str]) -> str | None:
        """What the texts are of those added: "duplicates" where they equal some, "near-duplicates", or None."""
        key = normalized(texts)
        if key in self._equal:
            return "duplicates"
        if self.near is not None:
            own = shingles(key)
            if any(jaccard(own, self._sets[i]) >= self.near for i in self._candidates(own)):
                return "near-duplicates"
        return None

    def nearest(self, texts: Sequence[str]) -> tuple[str, float] | None:
        """The normalized text of those added that shares most with the texts, and how much; None where none is near."""
        assert self.near is not None
        key = normalized(texts)
        if key in self._equal:
            return key, 1.0
        own = shingles(key)
        share, i = max(((jaccard(own, self._sets[i]), -i) for i in self._candidates(own)), default=(0.0, 0))
        return (self._texts[-i], share) if share >= self.near else None

    def add(self, texts: Sequence[str]) -> None:
        """Remember a row's texts."""
        self._add(normalized(texts))

    def _add(self, key: str) -> None:
        if key in self._equal:
            return
        self._equal.add(key)
        if self.near is not None:
            own = shingles(key)
            for one in self._prefix(own):
                self._where[one].append(len(self._sets))
            self._sets.append(own)
            self._texts.append(key)

    def _candidates(self, own: frozenset[str]) -> set[int]:
        """The sets that may be near."""
        return {i for one in self._prefix(own) for i in self._where.get(one, ())}

    def _prefix(self, own: frozenset[str]) -> list[str]:
        assert self.near is not None
        least = math.ceil(self.near * len(own) - _SLACK)  # that a near text shares
        return sorted(own, key=lambda one: (self._count[one], one))[: len(own) - least + 1]
