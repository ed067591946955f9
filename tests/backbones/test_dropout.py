"""Dropout against its definition: each element zero with probability p, else scaled, the gradient likewise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_arch.backbones.dropout import Dropout, hashed_mask, keep_share, random_mask, replace_dropout

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


# The mask of compiled models


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_a_hashed_mask_keeps_the_right_share_independently(p: float) -> None:
    """Of all, of each column and row, of neighbours, and of the same place in two masks: as independent draws would."""
    torch.manual_seed(0)
    shape = (2000, 1, 768)
    one, two = (hashed_mask(shape, torch.rand(2), p).double() for _ in range(2))
    pairs = [(one, two), (one[1:], one[:-1]), (one[..., 1:], one[..., :-1]), (one[..., 64:], one[..., :-64])]
    for first, second in pairs:
        spread = math.sqrt(1 / first.numel())
        correlation = float(((first - (1 - p)) * (second - (1 - p))).mean()) / (p * (1 - p))
        assert abs(correlation) < 4.5 * spread
    for over in ((0, 1), (1, 2), (0, 1, 2)):
        count = one.numel() / one.mean(over).numel()
        z = (one.mean(over) - (1 - p)) / math.sqrt(p * (1 - p) / count)
        assert float(z.abs().max()) < 5.5
        assert z.numel() == 1 or 0.85 < float(z.std()) < 1.15


def test_a_hashed_mask_is_a_function_of_what_was_drawn() -> None:
    drawn = torch.rand(2)
    assert torch.equal(hashed_mask((50, 8), drawn, 0.3), hashed_mask((50, 8), drawn, 0.3))
    for place in range(2):
        other = drawn.clone()
        other[place] = (float(other[place]) + 2**-24) % 1
        assert not torch.equal(hashed_mask((50, 8), drawn, 0.3), hashed_mask((50, 8), other, 0.3))


def test_a_hashed_mask_is_splitmix_in_unsigned_numbers() -> None:
    drawn, p, wide = torch.tensor([0.3, 0.7]), 0.4, 2**32
    seeds = [int(x * 2**24) * 0x9E3779B9 % wide for x in drawn.tolist()]
    expected = []
    for place in range(300):
        bits = (place ^ seeds[0]) * 0x9E3779B9 % wide
        bits = (bits ^ (bits >> 16)) * (seeds[1] | 1) % wide
        bits = (bits ^ (bits >> 13)) * 0xC2B2AE35 % wide
        signed = ((bits ^ (bits >> 16)) + 2**31) % wide - 2**31
        expected.append(signed >= round(p * wide) - 2**31)
    assert hashed_mask((300,), drawn, p).tolist() == expected
