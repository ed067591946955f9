"""Scaling and clipping against torch's, which takes dense gradients only."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_arch.gradients import clip_gradients, clip_values, scale_gradients


def twins() -> tuple[nn.Sequential, nn.Sequential]:
    """A model with a sparse gradient with duplicates and its dense equal, an unused parameter in both."""

    def make(sparse: bool) -> nn.Sequential:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(50, 6, padding_idx=0, sparse=sparse), nn.Linear(6, 3), nn.Tanh())
        model.unused = nn.Parameter(torch.zeros(2))
        for ids in ([4, 1, 4, 4, 9, 0, 1], [9, 2]):
            model(torch.tensor(ids)).square().sum().backward()
        return model

    return make(True), make(False)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.to_dense() for p in model.parameters() if p.grad is not None]


def assert_equal_gradients(sparse: nn.Sequential, dense: nn.Sequential) -> None:
    assert sparse[0].weight.grad.is_sparse
    torch.testing.assert_close(gradients(sparse), gradients(dense), rtol=1e-5, atol=0)


def test_scaling_multiplies_sparse_and_dense_gradients():
    sparse, dense = twins()
    expected = [0.3 * grad for grad in gradients(dense)]
    scale_gradients(sparse.parameters(), 0.3)
    scale_gradients(dense.parameters(), torch.tensor(0.3))
    torch.testing.assert_close(gradients(sparse), expected)
    torch.testing.assert_close(gradients(dense), expected)


@given(max_norm=st.floats(1e-7, 1e3), scale=st.sampled_from([1.0, 1e-6]))
def test_clipping_by_norm_is_torchs(max_norm, scale):
    sparse, dense = twins()
    for model in (sparse, dense):
        scale_gradients(model.parameters(), scale)
    ours = clip_gradients(sparse.parameters(), max_norm)
    torchs = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=0)
    assert_equal_gradients(sparse, dense)


def test_clipping_does_not_touch_small_gradients():
    sparse, _ = twins()
    before = gradients(sparse)
    norm = clip_gradients(sparse.parameters(), 1e6)
    assert norm.item() == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in before)), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(sparse), strict=True))


def test_clipping_a_nan_is_torchs():
    ours, torchs = nn.Linear(2, 1), nn.Linear(2, 1)
    for model in (ours, torchs):
        model(torch.ones(1, 2)).sum().backward()
        model.bias.grad.fill_(math.nan)
    assert clip_gradients(ours.parameters(), 1.0).isnan()
    torch.nn.utils.clip_grad_norm_(torchs.parameters(), 1.0)
    torch.testing.assert_close(gradients(ours), gradients(torchs), equal_nan=True)


def test_clipping_by_value_is_torchs():
    sparse, dense = twins()
    biggest = max(grad.abs().max().item() for grad in gradients(dense))
    clip_values(sparse.parameters(), biggest / 3)
    torch.nn.utils.clip_grad_value_(dense.parameters(), biggest / 3)
    assert_equal_gradients(sparse, dense)


def test_without_gradients_nothing_happens():
    model = nn.Linear(2, 2)
    scale_gradients(model.parameters(), 2.0)
    clip_values(model.parameters(), 1.0)
    assert clip_gradients(model.parameters(), 1.0) == 0


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_limits_must_be_positive(limit):
    with pytest.raises(ValueError, match=f"max_norm must be above 0, got {limit}"):
        clip_gradients([], limit)
    with pytest.raises(ValueError, match=f"value must be above 0, got {limit}"):
        clip_values([], limit)
