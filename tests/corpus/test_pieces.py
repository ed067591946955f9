"""Every token of every document in exactly one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.corpus.pieces import Pieces, cut

checked = settings(max_examples=200, deadline=None)
DOCUMENTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 500)), max_size=12)


def whole(documents: list[tuple[int, int]], size: int, **options: int) -> Pieces:
    lengths, text_bytes = np.array(documents, dtype=np.int64).reshape(-1, 2).T
    return cut(np.arange(len(documents)), lengths, text_bytes, size, **options)


def listed(pieces: Pieces) -> list[tuple[int, int, int]]:
    return list(
        zip(pieces.document.tolist(), pieces.start.tolist(), (pieces.start + pieces.length).tolist(), strict=True)
    )


def by_hand(lengths: list[int], size: int, overlap: int) -> list[tuple[int, int, int]]:
    """Full pieces from the beginning on, until nothing is left that no piece holds."""
    found = []
    for document, length in enumerate(lengths):
        start = 0
        while start + overlap < length:
            found.append((document, start, min(start + size + overlap, length)))
            start += size
    return found


@checked
@given(DOCUMENTS, st.integers(1, 15), st.integers(0, 2))
def test_cut_from_the_beginning(documents: Any, size: int, overlap: int) -> None:
    pieces = whole(documents, size, overlap=overlap)
    assert listed(pieces) == by_hand([length for length, _ in documents], size, overlap)
    assert len(pieces) == len(pieces.document) == len(pieces.text_bytes)


@checked
@given(DOCUMENTS, st.integers(1, 6), st.integers(0, 8), st.integers(0, 2))
def test_every_token_once(documents: Any, shortest: int, more: int, overlap: int) -> None:
    size = 2 * shortest - 1 + more
    pieces = whole(documents, size, overlap=overlap, shortest=shortest)
    own = [(d, token) for d, start, stop in listed(pieces) for token in range(start, stop - overlap)]
    long_enough = [(d, length - overlap) for d, (length, _) in enumerate(documents) if length - overlap >= shortest]
    assert own == [(d, token) for d, length in long_enough for token in range(length)]
    assert ((pieces.length - overlap >= shortest) & (pieces.length - overlap <= size)).all()
    # What is shared with the next piece is its beginning.
    for (document, _, stop), (following, start, _) in zip(listed(pieces), listed(pieces)[1:], strict=False):
        assert start == (stop - overlap if document == following else 0)
    for document, _ in long_enough:
        assert int(pieces.text_bytes[pieces.document == document].sum()) == documents[document][1]
    assert (pieces.text_bytes >= 0).all()


def test_bytes_are_shared_by_length() -> None:
    assert whole([(25, 100)], 10).text_bytes.tolist() == [40, 40, 20]
    assert whole([(25, 7)], 10).text_bytes.sum() == 7
    huge = 2**52 + 1
    assert int(whole([(10**6 + 1, huge)], 7).text_bytes.sum()) == huge


def test_some_documents_of_a_store() -> None:
    pieces = cut(np.array([7, 3]), np.array([3, 5]), np.array([30, 50]), 4)
    assert listed(pieces) == [(7, 0, 3), (3, 0, 4), (3, 4, 5)]
    assert pieces.text_bytes.tolist() == [30, 40, 10]


def test_a_last_piece_takes_what_it_lacks() -> None:
    assert listed(whole([(9, 9)], 4, shortest=2)) == [(0, 0, 4), (0, 4, 7), (0, 7, 9)]
    assert listed(whole([(1, 9), (2, 9)], 4, shortest=2)) == [(1, 0, 2)]


def test_none() -> None:
    for documents in ([], [(0, 5)]):
        assert len(whole(documents, 4)) == 0
    assert len(whole([(1, 5)], 4, overlap=1)) == 0


def test_long_corpora_are_cut_at_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 2000, 50_000)
    pieces = cut(np.arange(50_000), lengths, 4 * lengths, 126)
    assert int(pieces.length.sum()) == int(lengths.sum())
    assert pieces.length.dtype == pieces.start.dtype == np.int64


def test_impossible_sizes_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        whole([(9, 9)], 2, shortest=2)
