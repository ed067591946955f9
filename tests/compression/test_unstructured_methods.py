"""Each method against its formula, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llm_arch.compression.n_m import NMPruning
from llm_arch.compression.unstructured_magnitude import MagnitudePruning
from llm_arch.compression.unstructured_movement import MovementPruning
from llm_arch.compression.unstructured_soft_movement import SoftMovementPruning
from llm_arch.compression.wanda import WandaPruning
from llm_arch.types import Batch, UserError


def test_magnitude_is_by_size_and_does_not_compound() -> None:
    weights = {"a": torch.randn(8, 6), "b": 3 * torch.randn(4, 5)}
    method = MagnitudePruning()
    every = torch.cat([w.flatten().abs() for w in weights.values()])
    for sparsity in (0.2, 0.5, 0.5):
        kept = method.masks(weights, sparsity)
        assert sum(int((~m).sum()) for m in kept.values()) == round(sparsity * 68)
        threshold = every.sort().values[round(sparsity * 68)]
        for name, mask in kept.items():
            weights[name] = weights[name] * mask
            assert bool((weights[name][mask].abs() >= threshold).all())


def test_movement_adds_up_what_weights_moved() -> None:
    method, expected = MovementPruning("global"), torch.zeros(3, 4)
    for rate in (0.1, 0.5, 0.2):
        weight, gradient = torch.randn(3, 4), torch.randn(3, 4)
        method.follow("a", weight, gradient, rate)
        expected -= rate * weight * gradient
    assert torch.allclose(method.scores["a"], expected, atol=1e-6)
    kept = method.masks({"a": torch.randn(3, 4)}, 0.5)["a"]
    assert float(expected[kept].min()) >= float(expected[~kept].max())
    again = MovementPruning("global")
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.masks({"a": torch.randn(3, 4)}, 0.5)["a"], kept)


def test_shrinking_weights_go_and_growing_ones_stay() -> None:
    """A least-squares problem: the optimum has zeros where the weights began large."""
    target, weight = torch.tensor([[2.0, 0.0, -2.0, 0.0]]), torch.tensor([[0.5, 1.5, -0.5, -1.5]])
    method = MovementPruning()
    for _ in range(20):
        gradient = weight - target
        method.follow("a", weight, gradient, 0.1)
        weight = weight - 0.1 * gradient
    assert method.masks({"a": weight}, 0.5)["a"].tolist() == [[True, False, True, False]]


def test_soft_movement_learns_as_autograd_would() -> None:
    torch.manual_seed(0)
    method = SoftMovementPruning(penalty=3.0, learning_rate=0.05)
    score = nn.Parameter(torch.zeros(3, 4))
    adam = torch.optim.Adam([score], lr=0.05)
    weights, x = torch.randn(3, 4), torch.randn(9, 4)
    for step in range(6):
        # The mask is a threshold forward and the identity backward.
        hard = (score.sigmoid() > 0.1).float()
        masked = weights * (hard + score - score.detach())
        loss = (x @ masked.T).square().mean()
        (gradient,) = torch.autograd.grad(loss, masked, retain_graph=True)
        (loss + step / 5 * 3.0 * score.sigmoid().mean()).backward()
        adam.step(), adam.zero_grad()
        method.follow("a", weights, gradient, 0.1)
        method.advance(step / 5)
        assert torch.allclose(method.scores["a"], score, atol=1e-6)
        if step == 3:
            method, before = SoftMovementPruning(penalty=3.0, learning_rate=0.05), method
            method.load_state_dict(before.state_dict())
    for _ in range(1000):
        method.follow("a", weights, torch.zeros(3, 4), 0.1)
        method.advance(1.0)
    assert not method.masks({"a": weights}, 0.0)["a"].any()


def batch(lengths: list[int], valid: bool = False) -> Batch:
    longest, size = max(lengths), len(lengths)
    if valid:
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        segments = torch.arange(size).repeat_interleave(longest)
        fields: dict[str, Any] = {"valid": real.flatten(), "starts": torch.arange(size) * longest}
    else:
        segments = torch.arange(size).repeat_interleave(torch.tensor(lengths))
        fields = {"starts": torch.tensor([0, *lengths[:-1]]).cumsum(0)}
    ids = torch.zeros(len(segments), dtype=torch.long)
    return Batch(ids, ids, lengths=torch.tensor(lengths), segments=segments, index=torch.arange(size), **fields)


@pytest.mark.parametrize("layout", ["flat", "padded", "padded inside"])
def test_wanda_against_the_norms_of_real_tokens(layout: str) -> None:
    layer, lengths = nn.Linear(6, 5), [3, 1, 4]
    states = torch.randn(3, 4, 6) * torch.arange(1.0, 7.0)
    real = torch.arange(4) < torch.tensor(lengths)[:, None]
    states[~real] = 1000.0  # must not count
    method = WandaPruning()
    method.watch({"a": layer})
    method.see(batch(lengths, valid=layout == "padded"))
    layer(states[real][None] if layout == "flat" else states)
    method.see(None)
    layer(torch.full((2, 6), 1e6))  # validation
    method.gather(lambda own: 2 * own)  # two ranks that saw the same
    method.gather(lambda own: own)  # nothing new
    scores = layer.weight.detach().abs() * (2 * states[real].square().sum(0)).sqrt()
    kept = method.masks({"a": layer.weight.detach()}, 0.5)["a"]
    for row, mask in zip(scores, kept, strict=True):
        assert set(mask.nonzero().flatten().tolist()) == set(row.topk(3).indices.tolist())
    method.unwatch()
    assert not layer._forward_pre_hooks
    again = WandaPruning()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.masks({"a": layer.weight.detach()}, 0.5)["a"], kept)


def test_wanda_forgets_old_steps() -> None:
    layer, method = nn.Linear(2, 1), WandaPruning()
    method.watch({"a": layer})
    for states in ([[10.0, 0.0]], *[[[0.0, 1.0]]] * 200):
        method.see(batch([1]))
        layer(torch.tensor(states))
        method.gather(lambda own: own)
    first, second = method.inputs.norms("a", layer.weight).tolist()
    assert first < 0.1
    assert second == pytest.approx((1 / (1 - 0.95)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("n", "m", "by"), [(2, 4, "magnitude"), (1, 4, "wanda"), (3, 5, "magnitude")])
def test_groups_keep_their_largest(n: int, m: int, by: Any) -> None:
    method, weight = NMPruning(n, m, by), torch.randn(7, 4 * m)
    assert method.sparsity == 1 - n / m
    kept = method.masks({"a": weight}, method.sparsity)["a"].unflatten(1, (-1, m))
    assert bool((kept.sum(-1) == n).all())
    sizes = weight.abs().unflatten(1, (-1, m))
    assert bool((sizes.masked_fill(~kept, 9).amin(-1) >= sizes.masked_fill(kept, 0).amax(-1)).all())
    partly = method.masks({"a": weight}, 0.5 / m)["a"]
    assert bool(partly.all())


def test_two_four_is_what_torch_calls_semi_structured() -> None:
    """No group of four has more than two, so that the compressed form holds all."""
    weight = torch.randn(32, 32)
    kept = NMPruning().masks({"a": weight}, 0.5)["a"]
    assert int(kept.view(32, 8, 4).sum(-1).max()) == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NMPruning(4, 4), "n must be at least 1 and below m, got n=4, m=4"),
        (lambda: NMPruning(by="sum"), "by must be magnitude or wanda, got 'sum'"),  # type: ignore[arg-type]
        (lambda: NMPruning().check({"a": torch.ones(2, 6)}), "2:4 needs inputs in groups of 4, a has 6"),
        (lambda: SoftMovementPruning(penalty=0), "penalty must be above 0, got 0"),
        (lambda: SoftMovementPruning(threshold=0.5), r"threshold must be in \(0, 0.5\), got 0.5"),
        (lambda: SoftMovementPruning(learning_rate=-1), "learning_rate must be above 0, got -1"),
        (lambda: MagnitudePruning("layer"), "scope must be global or matrix, got 'layer'"),  # type: ignore[arg-type]
    ],
)
def test_mistakes(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
