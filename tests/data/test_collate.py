"""Rows → batch: both layouts hold the same tokens as a loop over the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.collate import make_batch
from llm_arch.types import Batch

ROWS = st.lists(st.lists(st.integers(1, 30_000), min_size=1, max_size=7), min_size=1, max_size=6)
FIELDS = ("input_ids", "position_ids", "segments", "token_type_ids")


def columns_of(rows: list[list[int]], pairs: bool) -> dict[str, list[Any]]:
    types = [[i % 2 for i in range(len(row))] if pairs else None for row in rows]
    return {"input_ids": rows, "token_type_ids": types, "index": [10 * i + 3 for i in range(len(rows))]}


def by_loop(rows: list[list[int]], pairs: bool) -> list[tuple[int, ...]]:
    """(token, position, sequence[, type]) of every token, row by row."""
    return [
        (token, position, sequence, *([position % 2] if pairs else []))
        for sequence, row in enumerate(rows)
        for position, token in enumerate(row)
    ]


def tokens_of(batch: Batch) -> list[tuple[int, ...]]:
    values = [getattr(batch, name) for name in FIELDS]
    real = slice(None) if batch.valid is None else batch.valid
    return list(zip(*(value[real].tolist() for value in values if value is not None), strict=True))


@settings(max_examples=80, deadline=None)
@given(ROWS, st.booleans())
def test_layouts_describe_the_same_tokens(rows: list[list[int]], pairs: bool) -> None:
    labels = {"label": torch.arange(len(rows))}
    flat, padded = (make_batch(columns_of(rows, pairs), layout, labels) for layout in ("flat", "padded"))
    longest = max(map(len, rows))
    assert flat.valid is None
    assert flat.starts.tolist() == [sum(map(len, rows[:i])) for i in range(len(rows))]
    assert padded.starts.tolist() == [i * longest for i in range(len(rows))]
    assert padded.valid is not None
    assert padded.valid.tolist() == [position < len(row) for row in rows for position in range(longest)]
    assert padded.position_ids.tolist() == list(range(longest)) * len(rows)
    assert padded.segments.tolist() == [i for i in range(len(rows)) for _ in range(longest)]
    assert not padded.input_ids[~padded.valid].any()
    for batch in (flat, padded):
        assert tokens_of(batch) == by_loop(rows, pairs)
        assert (batch.token_type_ids is not None) == pairs
        assert batch.lengths.tolist() == [len(row) for row in rows]
        assert batch.index.tolist() == [10 * i + 3 for i in range(len(rows))]
        assert batch.size == len(rows)
        assert batch.labels is labels
        for i, row in enumerate(rows):
            start, length = int(batch.starts[i]), int(batch.lengths[i])
            assert batch.input_ids[start : start + length].tolist() == row
        for value in vars(batch).values():
            if isinstance(value, torch.Tensor) and value is not batch.valid:
                assert value.dtype == torch.int64


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_no_labels(layout: str) -> None:
    assert dict(make_batch(columns_of([[5]], False), layout).labels) == {}
