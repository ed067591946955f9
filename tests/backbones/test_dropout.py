"""Dropout against its definition: each element zero with probability p, else scaled, the gradient likewise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_arch.backbones.dropout import Dropout, keep_share, random_mask, replace_dropout

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_the_right_share_is_dropped_and_the_rest_scaled(p: float, dtype: torch.dtype) -> None:
    count = 200_000
    out = Dropout(p)(torch.ones(count, dtype=dtype))
    kept = out != 0
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    assert out[kept].unique().tolist() == [pytest.approx(1 / (1 - p), rel=0.01)]
    assert abs(float(out.double().mean()) - 1) < 0.05


@settings(max_examples=50, deadline=None)
@given(p=st.floats(0.0, 1.0, exclude_max=True))
def test_the_share_kept_is_near_and_never_nothing(p: float) -> None:
    keep = keep_share(p)
    assert 0 < keep <= 1
    assert abs(keep - (1 - p)) <= 2**-16
    assert (keep * 2**16).is_integer()


@pytest.mark.parametrize("p", [1e-9, 2**-18, 2**-16, 1 - 1e-9])
def test_extreme_shares(p: float) -> None:
    assert Dropout(p)(torch.ones(1000)).eq(0).all() == (p > 0.5)


def test_neighbours_are_independent() -> None:
    mask = random_mask((100_000, 4), 0.5, torch.bfloat16).bool().double()  # four elements share a draw
    correlation = torch.corrcoef(mask.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.02
    assert abs(float(torch.corrcoef(torch.stack([mask[:-1, 3], mask[1:, 0]]))[0, 1])) < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_what_the_values_were_multiplied_by(dtype: torch.dtype) -> None:
    values = torch.randn(7, 13, dtype=dtype, requires_grad=True)
    upstream = torch.randn(13, 7, dtype=dtype).T  # not contiguous, as transposed products are
    out = Dropout(0.3)(values)
    out.backward(upstream)
    factor = torch.where(out.detach() == 0, 0.0, 1 / keep_share(0.3)).to(dtype)
    assert values.grad is not None
    torch.testing.assert_close(out, values * factor)
    torch.testing.assert_close(values.grad, upstream * factor)


def test_what_is_not_finite_is_dropped_too() -> None:
    out = Dropout(0.5)(torch.full((1000,), float("inf")))
    assert set(out.tolist()) == {0.0, float("inf")}  # times zero it would be NaN


def test_the_seed_decides() -> None:
    values, dropout = torch.ones(999), Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(values), dropout(values)
    torch.manual_seed(3)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(first, second)


def test_nothing_happens_in_evaluation_or_at_zero() -> None:
    values = torch.randn(5)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values
    assert Dropout(1.0)(values).tolist() == [0.0] * 5


def test_every_plain_dropout_of_a_model_is_replaced() -> None:
    class Own(nn.Dropout):
        """Does something else."""

    model = nn.ModuleDict(
        {"a": nn.Dropout(0.2), "b": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4).eval()), "c": Own()}
    )
    replace_dropout(model)
    a, b, c = model["a"], model["b"][1], model["c"]  # type: ignore[index]
    assert (type(a), a.p, a.training) == (Dropout, 0.2, True)
    assert (type(b), b.p, b.training) == (Dropout, 0.4, False)
    assert type(c) is Own
