"""Rows → batch: both layouts hold the same tokens as a loop over the rows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.collate import flat_batch, make_batch
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


@st.composite
def rows_of_windows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of one or more windows, and words at tokens of theirs; no two tokens are alike."""
    rows, token = [], 1
    for _ in range(draw(st.integers(1, 4))):
        windows = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        ids = list(range(token, token := token + sum(windows)))
        places = draw(st.lists(st.integers(0, len(ids) - 1), max_size=4))
        rows.append({"ids": ids, "windows": windows if len(windows) > 1 else None, "places": places})
    return rows


@settings(max_examples=80, deadline=None)
@given(rows_of_windows(), st.sampled_from(["flat", "padded"]))
def test_windows_are_sequences_and_words_stay_at_their_tokens(rows: list[dict[str, Any]], layout: str) -> None:
    columns = {
        "input_ids": [row["ids"] for row in rows],
        "token_type_ids": [None] * len(rows),
        "index": [10 * i + 3 for i in range(len(rows))],
        "windows": [row["windows"] for row in rows],
        "word_token": [row["places"] for row in rows],
        "word_start": [[2 * place for place in row["places"]] for row in rows],
        "word_end": [[2 * place + 1 for place in row["places"]] for row in rows],
    }
    batch = make_batch(columns, layout)
    sequences = [
        (10 * i + 3, row["ids"][sum(windows[:w]) : sum(windows[: w + 1])])
        for i, row in enumerate(rows)
        for windows in [row["windows"] or [len(row["ids"])]]
        for w in range(len(windows))
    ]
    assert batch.index.tolist() == [index for index, _ in sequences]
    assert batch.lengths.tolist() == [len(ids) for _, ids in sequences]
    for start, (_, ids) in zip(batch.starts.tolist(), sequences, strict=True):
        assert batch.input_ids[start : start + len(ids)].tolist() == ids
        assert batch.position_ids[start : start + len(ids)].tolist() == list(range(len(ids)))
    assert batch.rows == len(rows)
    assert batch.row_index.tolist() == columns["index"]
    assert batch.words is not None
    words = [(i, row["ids"][place], 2 * place) for i, row in enumerate(rows) for place in row["places"]]
    found = [batch.words.row, batch.input_ids[batch.words.token], batch.words.start]
    assert list(zip(*(values.tolist() for values in found), strict=True)) == words
    assert (batch.words.end - batch.words.start).tolist() == [1] * len(words)


def test_without_words() -> None:
    assert make_batch(columns_of([[5]], False)).words is None


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_no_labels(layout: str) -> None:
    assert dict(make_batch(columns_of([[5]], False), layout).labels) == {}


# Rows that are arrays already


@pytest.mark.parametrize("layout", ["flat", "padded"])
@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=5), data=st.data())
def test_arrays_make_the_same_batch(layout: str, rows: Any, data: Any) -> None:
    types = [[i % 2 for i in row] for row in rows]
    index = list(range(10, 10 + len(rows)))
    expected = make_batch({"input_ids": rows, "token_type_ids": types, "index": index}, layout)
    ids = np.array([i for row in rows for i in row])
    cells = sorted(data.draw(st.sets(st.sampled_from(range(len(ids))))))
    labels = {"positions": np.array(cells, dtype=np.int64), "targets": ids[cells], "text_bytes": np.ones(len(rows))}
    kinds = np.array([t for row in types for t in row])
    found = flat_batch(ids, kinds, np.array([len(row) for row in rows]), np.array(index), layout, labels)
    for field in fields(Batch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other), field.name
    assert (
        found.input_ids[found.labels["positions"]].tolist() == found.labels["targets"].tolist() == ids[cells].tolist()
    )
    assert found.labels["text_bytes"].shape == (len(rows),)
    whole = flat_batch(ids, None, np.array([len(row) for row in rows]), np.array(index), layout, {"targets": ids + 1})
    places = whole.labels.get("positions", torch.arange(len(ids)))
    assert (whole.input_ids[places] + 1).tolist() == whole.labels["targets"].tolist()
    assert ("positions" in whole.labels) == (layout == "padded")
    assert whole.token_type_ids is None
