"""Cutting validation and test rows off the training rows."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.splits import Split, cut_off, lengths_of
from llm_arch.types import UserError


def split_of(keys: list[int], name: str = "train") -> Split:
    """Rows whose number of tokens is 1 + their place modulo 5."""
    tokens = [[7] * (1 + i % 5) for i in range(len(keys))]
    rows = datasets.Dataset.from_dict(
        {"input_ids": tokens, "key": keys, "text": [f"row {i}" for i in range(len(keys))]}
    )
    return Split(name, "rows.csv", rows, None, lengths_of(rows), {"rows": len(keys)})


def places(split: Split) -> list[int]:
    assert split.chosen is not None
    return [int(i) for i in split.chosen]


def test_lengths_of() -> None:
    lengths = split_of([1] * 7).lengths
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [1, 2, 3, 4, 5, 1, 2]


def test_column_follows_the_choice() -> None:
    whole = split_of([1, 2, 3, 4])
    assert whole.column("text") == ["row 0", "row 1", "row 2", "row 3"]
    part = Split("test", "rows.csv", whole.rows, np.array([3, 1]), whole.lengths[[3, 1]], {})
    assert part.column("text") == ["row 3", "row 1"]
    assert (len(whole), len(part)) == (4, 2)


WANTED = st.sampled_from(
    [{"validation": 0.1}, {"validation": 0.5}, {"validation": 0.3, "test": 0.3}, {"test": 0.98}, {"test": 1e-9}]
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-5, 30), min_size=1, max_size=80), WANTED, st.integers(0, 2**31))
def test_cut_off(keys: list[int], wanted: dict[str, float], seed: int) -> None:
    train = split_of(keys)
    sizes = Counter(keys)
    if len(sizes) <= len(wanted):
        with pytest.raises(UserError, match=f"has {len(sizes)} distinct texts"):
            cut_off(train, wanted, seed)
        return
    splits = cut_off(train, wanted, seed)
    assert set(splits) == {*wanted, "train"}
    assert sorted(i for split in splits.values() for i in places(split)) == list(range(len(keys)))
    sides = {name: {keys[i] for i in places(split)} for name, split in splits.items()}
    assert sum(map(len, sides.values())) == len(sizes)
    for name, split in splits.items():
        assert len(split) > 0
        assert (split.name, split.source, split.facts) == (name, "rows.csv", train.facts)
        assert places(split) == sorted(places(split))
        assert split.lengths.tolist() == [1 + i % 5 for i in places(split)]
        assert split.column("key") == [keys[i] for i in places(split)]
        if name in wanted:  # at most one text more than its share
            assert len(split) <= wanted[name] * len(keys) + max(sizes.values())
    again = cut_off(train, wanted, seed)
    assert {name: places(split) for name, split in again.items()} == {n: places(s) for n, s in splits.items()}


def test_shares_are_met() -> None:
    splits = cut_off(split_of([i // 2 for i in range(1000)]), {"validation": 0.1, "test": 0.25}, 0)
    assert {name: len(split) for name, split in splits.items()} == {"validation": 100, "test": 250, "train": 650}


def test_the_seed_decides() -> None:
    train = split_of(list(range(100)))
    first, second = (set(places(cut_off(train, {"test": 0.2}, seed)["test"])) for seed in (0, 1))
    assert first != second


def test_rows_are_drawn_from_everywhere() -> None:
    drawn: Counter[Any] = Counter()
    train = split_of(list(range(20)))
    for seed in range(300):
        drawn.update(places(cut_off(train, {"test": 0.25}, seed)["test"]))
    assert all(40 < drawn[i] < 115 for i in range(20))  # 75 on average


def test_too_few_texts() -> None:
    message = (
        "rows.csv has 2 distinct texts, too few to cut off validation and test rows; "
        "name files for them, or set data.validation_fraction to 0"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        cut_off(split_of([1, 1, 2, 2]), {"validation": 0.1, "test": 0.1}, 0)
