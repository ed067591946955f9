"""Documents → pieces that fit a model: every token of every document in exactly one piece, nothing cropped.

A document is cut from its beginning into pieces of the full size, of which the last may be shorter. That gives tokens
as much context as they can have, and short pieces that fill what long ones leave of a batch.

Legend: N documents, P pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Where each piece lies.

    Attributes:
        document: (P,) its document's number in the store, ascending where the documents were.
        start: (P,) its first token in the document.
        length: (P,) tokens, those included that it shares with the piece behind it.
        text_bytes: (P,) its share of the bytes of the document's text; those of a document add up to them.
    """

    document: Numbers
    start: Numbers
    length: Numbers
    text_bytes: Numbers

    def __len__(self) -> int:
        return len(self.document)


def cut(
    documents: Numbers, lengths: Numbers, text_bytes: Numbers, size: int, *, overlap: int = 0, shortest: int = 1
) -> Pieces:
    """Cut documents into pieces.

    Args:
        documents: (N,) numbers of the documents.
        lengths: (N,) tokens of each.
        text_bytes: (N,) bytes of the text of each.
        size: tokens of a piece at most, beyond `overlap`; at least 2 · shortest - 1.
        overlap: how many tokens of a piece are the first of the next one as well.
        shortest: tokens of a piece at least, beyond `overlap`: a last piece takes what it lacks from the one before it.
            Documents that are shorter themselves have no piece.
    """
    assert size >= max(1, 2 * shortest - 1), (size, shortest)
    own = lengths - overlap
    kept = own >= max(1, shortest)
    documents, own, text_bytes = documents[kept], own[kept], text_bytes[kept]
    counts = -(-own // size)
    ends = np.cumsum(counts)
    first, last = ends - counts, ends - 1
    start = (np.arange(ends[-1] if len(ends) else 0) - np.repeat(first, counts)) * size
    stop = np.minimum(start + size, np.repeat(own, counts))
    lack = np.maximum(0, shortest - (stop[last] - start[last]))
    start[last] -= lack
    several = counts > 1
    stop[last[several] - 1] -= lack[several]
    share = np.repeat(text_bytes / own, counts)
    return Pieces(
        document=np.repeat(documents, counts),
        start=start,
        length=stop - start + overlap,
        text_bytes=(np.rint(share * stop) - np.rint(share * start)).astype(np.int64),
    )
