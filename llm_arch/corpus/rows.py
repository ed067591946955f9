"""Pieces of a store as rows of a data set: a batch of them is read at once.

Legend: R rows, N tokens of all rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llm_arch.corpus.pieces import Numbers, Pieces
from llm_arch.seeding import run_seed


class Documents(Protocol):
    """What is needed of a `llm_arch.corpus.shards.Store`."""

    @property
    def lengths(self) -> Numbers:
        """Tokens of each document."""
        ...

    @property
    def text_bytes(self) -> Numbers:
        """Bytes of the text of each document."""
        ...

    @property
    def keys(self) -> Numbers:
        """Equal for documents of equal text."""
        ...

    def __len__(self) -> int: ...

    def read(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Token ids of a document."""
        ...


class PieceRows:
    """Pieces as rows.

    Args:
        store: the documents.
        pieces: where the pieces lie, and how long they are.
        training: whether chance is to follow the seed of the run; else it is the same in every run.
        first: a token in front of every document, from which the pieces then count, or None.
        last: a token behind every document, or None.
    """

    def __init__(
        self, store: Documents, pieces: Pieces, *, training: bool, first: int | None = None, last: int | None = None
    ) -> None:
        self.store = store
        self.pieces = pieces
        self.training = training
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def seed(self) -> int:
        """What chance follows."""
        return run_seed() if self.training else 0

    def __getitem__(self, numbers: list[int]) -> dict[str, Any]:
        """Columns of these pieces.

        Args:
            numbers: which; may carry an `epoch`, see `llm_arch.data.loader.RowNumbers`.

        Returns:
            `tokens` (N,) of all rows, one after another; `sizes` (R,) tokens of each row; `text_bytes` (R,); `seed`.
        """
        pieces = self.pieces
        sizes_R = pieces.length[numbers]
        places = zip(pieces.document[numbers].tolist(), pieces.start[numbers].tolist(), sizes_R.tolist(), strict=True)
        if self.first is None and self.last is None:
            read = self.store.read
            parts = [read(document, start, start + size) for document, start, size in places]
        else:
            parts = [part for place in places for part in self._with_ends(*place)]
        return {
            "tokens": np.concatenate(parts, dtype=np.int64),
            "sizes": sizes_R,
            "text_bytes": pieces.text_bytes[numbers].astype(np.float64),
            "seed": self.seed,
        }

    def _with_ends(self, document: int, start: int, size: int) -> list[Any]:
        """A piece of a document that has a token in front, one behind it, or both."""
        stop = start + size
        if self.first is not None:
            start, stop = start - 1, stop - 1
        length = int(self.store.lengths[document])
        text = self.store.read(document, max(0, start), min(stop, length))
        before = [[self.first]] if start < 0 else []
        return [*before, text, [self.last]] if stop > length else [*before, text]
