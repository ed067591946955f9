"""Batches in the order of the plan, from wherever the run stands."""

from __future__ import annotations

import pickle
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.data.loader import Columns, Loader, PlannedBatches, RowNumbers

BATCHES = 12


def plan(epoch: int) -> list[Any]:
    """Batches that tell their epoch and number."""
    return [np.array([100 * epoch + i, 1000 + i]) for i in range(BATCHES)]


@given(ranks=st.sampled_from([1, 2, 3, 4]), epoch=st.integers(0, 5), done=st.integers(0, 3))
def test_resuming_gives_what_remains(ranks: int, epoch: int, done: int) -> None:
    whole = [batch.tolist() for batch in plan(epoch)]
    parts = [list(PlannedBatches(plan, BATCHES, r, ranks, lambda: (epoch, done))) for r in range(ranks)]
    assert all(len(part) == BATCHES // ranks - done for part in parts)
    # Step by step over the ranks: the plan, less what all of them have done.
    assert [batch for step in zip(*parts, strict=True) for batch in step] == whole[done * ranks :]


def test_length_is_that_of_a_whole_epoch() -> None:
    batches = PlannedBatches(plan, BATCHES, 1, 4, lambda: (0, 2))
    assert len(batches) == 3
    assert len(list(batches)) == 1


def test_starts_at_the_first_epoch_by_default() -> None:
    found = list(PlannedBatches(plan, BATCHES))
    assert found == [batch.tolist() for batch in plan(0)]
    assert all(type(number) is int for batch in found for number in batch)


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"x": [10 * i for i in range(8)], "y": [str(i) for i in range(8)]})


def test_columns(rows: datasets.Dataset) -> None:
    whole = Columns(rows, None)
    assert len(whole) == 8
    assert whole.__getitems__([3, 1]) == {"x": [30, 10], "y": ["3", "1"], "index": [3, 1], "epoch": 0}
    assert whole[2] == {"x": [20], "y": ["2"], "index": [2], "epoch": 0}


def test_columns_of_a_part(rows: datasets.Dataset) -> None:
    part = Columns(rows, np.array([7, 0, 4]))
    assert len(part) == 3
    assert part.__getitems__([2, 0]) == {"x": [40, 70], "y": ["4", "7"], "index": [2, 0], "epoch": 0}
    assert part[1] == {"x": [0], "y": ["0"], "index": [1], "epoch": 0}


def test_rows_are_told_the_epoch() -> None:
    """Rows that differ from epoch to epoch see it in the numbers they are asked for, and `collate` in a column."""

    class Epochs:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, rows: Any) -> dict[str, list[Any]]:
            return {"x": [(rows.epoch, row) for row in rows]}

    for chosen, places in ((None, [2, 0]), (np.array([7, 0, 4]), [4, 7])):
        batch = pickle.loads(pickle.dumps(RowNumbers([2, 0], 5)))  # as it comes to a worker
        found = Columns(Epochs(), chosen).__getitems__(batch)
        assert found == {"x": [(5, place) for place in places], "index": [2, 0], "epoch": 5}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_the_position_late(rows: datasets.Dataset, workers: int) -> None:
    """Lightning makes the iterator before it restores its progress."""
    stand = (0, 0)
    seen = []

    def batches_of(epoch: int) -> list[Any]:
        seen.append(epoch)
        return [np.array([epoch, i]) for i in range(4)]

    loader = Loader(
        Columns(rows, None),
        batch_sampler=PlannedBatches(batches_of, 4, position=lambda: stand),
        collate_fn=lambda columns: columns["x"],
        num_workers=workers,
    )
    begun = iter(loader)
    assert seen == []
    stand = (5, 2)
    assert list(begun) == [[50, 20], [50, 30]]
    assert seen == [5]
    stand = (6, 0)
    assert list(loader) == [[60, 0], [60, 10], [60, 20], [60, 30]]
    assert len(loader) == 4


def test_the_loader_has_no_state(rows: datasets.Dataset) -> None:
    loader = Loader(Columns(rows, None), batch_sampler=PlannedBatches(plan, BATCHES))
    assert loader.state_dict() == {}
    loader.load_state_dict({"anything": 1})
    assert loader.state_dict() == {}
