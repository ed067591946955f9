"""Documents that occur twice, exactly or nearly; the first one stays.

Near-duplicates are found by MinHash (Broder 1997) and banding (Leskovec et al., "Mining of Massive Datasets", ch. 3):
two texts whose sets of five consecutive words overlap to a share of J have equal values in a band of 8 with a chance of
J⁸, and one such band of 14 makes the later text a duplicate: 77 % at J = 0.75, 99 % at 0.85, 5 % at 0.5. These numbers
are those of FineWeb (Penedo et al. 2024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Deduplicate = Literal["none", "exact", "near"]
BANDS, ROWS, SHINGLE = 14, 8, 5
_WORD = re.compile(r"\w+")
_SEED = 1


def bands(texts: Sequence[str]) -> NDArray[np.int64]:
    """(N, 14) what near-duplicates have in common: two of them have equal numbers in some column."""
    from rensa import RMinHash

    made = np.empty((len(texts), BANDS), np.int64)
    for row, text in enumerate(texts):
        sketch = RMinHash(num_perm=BANDS * ROWS, seed=_SEED)
        sketch.update(shingles(text))
        made[row] = _fold(np.array(sketch.digest(), np.uint64).reshape(BANDS, ROWS))
    return made


def shingles(text: str) -> list[str]:
    """Every run of five words of a text, without case and punctuation; of a shorter text all of it."""
    words = _WORD.findall(text.lower()) or [text]
    return [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]


def _fold(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(bands,) one number of each row of (bands, rows), which tells bands apart (FNV-1a on words of 64 bits)."""
    folded = np.arange(len(values), dtype=np.uint64) + np.uint64(0xCBF29CE484222325)
    for column in values.T:
        folded = (folded ^ column) * np.uint64(0x100000001B3)
        folded ^= folded >> np.uint64(29)
    return folded.view(np.int64)


class Numbers:
    """A growing set of 64-bit numbers, at eight bytes each: sorted runs, merged when two are of a size."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def holds(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the numbers (of any shape) are in the set."""
        found = np.zeros(numbers.shape, bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, numbers), len(run) - 1)
            found |= run[place] == numbers
        return found

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Put numbers into the set."""
        if not numbers.size:
            return
        self._runs.append(np.unique(numbers))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")  # finds the two runs that are sorted already
            self._runs.append(merged)


class Deduplicator:
    """Tells which documents occurred before.

    Only documents that stay are remembered: each one that goes resembles one that stays. Memory is 8 bytes a document
    that stays, or 120 where near-duplicates are looked for.

    Args:
        kind: "exact" compares the keys of texts, "near" also their bands, "none" keeps all.
    """

    def __init__(self, kind: Deduplicate) -> None:
        self._first = {"none": 0, "exact": 3, "near": 3 + BANDS}[kind]
        self._seen = Numbers()

    def keep(self, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) which of the documents stay; those are remembered.

        Args:
            documents: (N, columns) as `Encoded` has them.
        """
        keep = np.ones(len(documents), bool)
        if not self._first:
            return keep
        numbers = documents[:, 2 : self._first]
        keep &= ~self._seen.holds(numbers).any(axis=1)
        here: set[int] = set()  # of this block, whose documents may resemble each other
        for row in np.flatnonzero(keep):
            own = numbers[row].tolist()
            if here.isdisjoint(own):
                here.update(own)
            else:
                keep[row] = False
        self._seen.add(numbers[keep])
        return keep

    def remember(self, documents: NDArray[np.int64]) -> None:
        """Take documents that stayed in an earlier process."""
        if self._first:
            self._seen.add(np.ascontiguousarray(documents[:, 2 : self._first]))
