"""Masks against a sort in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.compression.sparsity import check_scope, check_sparsity, mask, masks_within
from llm_arch.types import UserError


def naive(scores: list[float], sparsity: float) -> list[bool]:
    """The smallest go, of equals the first."""
    gone = sorted(range(len(scores)), key=lambda i: (scores[i], i))[: round(sparsity * len(scores))]
    return [i not in gone for i in range(len(scores))]


# Few values, so that many are equal.
rows = st.lists(st.lists(st.integers(0, 3).map(float), min_size=6, max_size=6), min_size=1, max_size=4)


@given(rows, st.floats(0, 1))
def test_mask(scores: list[list[float]], sparsity: float) -> None:
    assert mask(torch.tensor(scores), sparsity).tolist() == [naive(row, sparsity) for row in scores]


@given(rows, st.floats(0, 1), st.floats(0, 1))
def test_more_sparsity_never_brings_a_weight_back(scores: list[list[float]], one: float, other: float) -> None:
    few, many = (mask(torch.tensor(scores), sparsity) for sparsity in sorted((one, other)))
    assert bool((few | ~many).all())


def test_global_and_matrix() -> None:
    scores = {"small": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "large": torch.tensor([[5.0, 6.0, 7.0, 8.0]])}
    within = {name: kept.tolist() for name, kept in masks_within(scores, 0.5, "global").items()}
    assert within == {"small": [[False, False], [False, False]], "large": [[True, True, True, True]]}
    within = {name: kept.tolist() for name, kept in masks_within(scores, 0.5, "matrix").items()}
    assert within == {"small": [[False, False], [True, True]], "large": [[False, False, True, True]]}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50, float("nan")])
def test_a_sparsity_that_is_no_share(sparsity: float) -> None:
    with pytest.raises(UserError, match=rf"sparsity must be in \[0, 1\).*got {sparsity}"):
        check_sparsity(sparsity)


def test_an_unknown_scope() -> None:
    with pytest.raises(UserError, match="scope must be global or matrix, got 'row'"):
        check_scope("row")
