"""A batch of one sequence is every other batch of it, only that its tensors come when they are asked for."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.data.collate import flat_batch, make_batch
from llm_arch.types import Batch, OneSequence

TENSORS = ("input_ids", "position_ids", "segments", "starts", "lengths", "index", "token_type_ids")
IDS = st.lists(st.integers(0, 30_000), min_size=1, max_size=9)


def one(ids: list[int], types: list[int] | None = None, index: int = 7) -> Batch:
    return make_batch({"input_ids": [ids], "token_type_ids": [types], "index": [index]})


def whole(ids: list[int], types: list[int] | None = None, index: int = 7) -> Batch:
    """The same from arrays, as for any number of rows."""
    array = torch.tensor(ids).numpy()
    types_ = None if types is None else torch.tensor(types).numpy()
    return flat_batch(array, types_, torch.tensor([len(ids)]).numpy(), torch.tensor([index]).numpy())


def assert_same(found: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name in TENSORS and theirs is not None:
            assert ours.dtype == theirs.dtype == torch.int64
            assert ours.tolist() == theirs.tolist(), field.name
        else:
            assert ours == theirs, field.name
    assert found.size == expected.size == found.rows == 1


@given(IDS, st.booleans(), st.permutations(TENSORS[:6]))
def test_whatever_is_asked_first(ids: list[int], pairs: bool, order: list[str]) -> None:
    types = [i % 2 for i in range(len(ids))] if pairs else None
    found = one(ids, types)
    assert isinstance(found, OneSequence)
    for name in order:
        assert getattr(found, name) is getattr(found, name)  # made once
    assert_same(found, whole(ids, types))


def test_what_it_becomes() -> None:
    """Copied, sent to a worker, changed and moved it is as other batches are."""
    expected = whole([4, 5, 6], [0, 1, 1])
    given = one([4, 5, 6], [0, 1, 1])
    for again in (pickle.loads(pickle.dumps(given)), copy.copy(given), replace(given)):
        assert_same(again, expected)
    assert given.to("cpu") is given
    moved = given.to("meta")
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert_same(replace(one([4, 5, 6]), input_ids=torch.tensor([7, 8, 9])), whole([7, 8, 9]))


def test_what_is_made_of_it_may_hold_more() -> None:
    """Explanations repeat a row."""
    twice = {name: torch.cat([getattr(one([4, 5]), name)] * 2) for name in ("input_ids", "position_ids", "index")}
    more = {"segments": torch.tensor([0, 0, 1, 1]), "starts": torch.tensor([0, 2]), "lengths": torch.tensor([2, 2])}
    changed = replace(one([4, 5]), **twice, **more, rows=2)
    assert changed.size == changed.rows == 2
    assert changed.first_token(torch.tensor([[1.0], [2.0], [3.0], [4.0]])).tolist() == [[1.0], [3.0]]


def test_nothing_else_is_there() -> None:
    with pytest.raises(AttributeError, match="OneSequence has no colour"):
        _ = one([4]).colour  # type: ignore[attr-defined]


def test_as_the_source_of_another_batch_it_moves_along() -> None:
    source = one([1, 2, 3], [0, 0, 1])
    moved = replace(whole([4, 5]), source=source).to("meta").source
    assert moved is not None
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert moved.longest == 3
