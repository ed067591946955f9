"""Learnt gates against the distribution's closed forms, and against a size that they must reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.gates import Gates
from llm_arch.compression.l0 import HardConcrete, LearnedGates
from llm_arch.compression.prices import Prices
from llm_arch.types import Batch, UserError


def even(heads: int, neurons: int, head: float, neuron: float, layer: float = 0.0, outside: float = 0.0) -> Prices:
    """Costs that grow evenly."""
    return Prices(np.arange(heads + 1) * head, np.arange(neurons + 1) * neuron, layer, outside)


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 1.0, 4.0])
def test_shares_of_exact_zeros_and_ones(log_alpha: float) -> None:
    torch.manual_seed(0)
    gates = HardConcrete(200_000)
    gates.log_alpha.data.fill_(log_alpha)
    drawn = gates.sample().detach()
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    # P(z = 0) and P(z = 1) from the distribution function of the stretched concrete variable.
    beta, low, high = 2 / 3, -0.1, 1.1

    def below(value: float) -> float:
        share = torch.tensor((value - low) / (high - low), dtype=torch.float64)
        return float(torch.sigmoid(beta * share.logit() - log_alpha))

    assert float((drawn == 0).float().mean()) == pytest.approx(below(0), abs=5e-3)
    assert float((drawn == 1).float().mean()) == pytest.approx(1 - below(1), abs=5e-3)
    assert gates.open()[0].item() == pytest.approx(1 - below(0), abs=1e-6)


def test_fixed_gates() -> None:
    gates = HardConcrete(3).eval()
    gates.log_alpha.data = torch.tensor([-5.0, 0.0, 5.0])
    assert gates().tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert HardConcrete(2, open=0.7).open().tolist() == pytest.approx([0.7, 0.7])


def test_samples_have_gradients() -> None:
    torch.manual_seed(1)
    gates = HardConcrete(1000)
    gates.log_alpha.data.zero_()
    drawn = gates()
    (grad,) = torch.autograd.grad(drawn.sum(), gates.log_alpha)
    inner = (drawn > 0) & (drawn < 1)
    assert bool((grad[inner] > 0).all())
    assert not grad[~inner].any()


def test_expected_size_is_the_mean_of_drawn_sizes() -> None:
    torch.manual_seed(2)
    gates = LearnedGates([2, 3], [4, 5], even(3, 5, 10.0, 1.0, 7.0, 30.0))
    for parameter in gates.parameters():
        parameter.data.uniform_(-2, 2)
    total = 0.0
    for _ in range(4000):
        with torch.no_grad():
            heads, neurons, layers = gates.values()
        total += 30 + sum(
            float(layers[i] > 0) * (7 + 10 * int((heads[i] > 0).sum()) + int((neurons[i] > 0).sum())) for i in range(2)
        )
    assert gates.expected_size().item() == pytest.approx(total / 4000 / (59 + 14 + 30), abs=0.01)


def test_costs_that_grow_unevenly() -> None:
    """Between two numbers of heads a price lies between theirs."""
    gates = LearnedGates([3], [1], Prices(np.array([0.0, 6.0, 7.0, 9.0]), np.zeros(2), 0.0, 1.0))
    gates.layers.log_alpha.data.fill_(99.0)
    for heads, price in (((99, 99, 99), 9.0), ((99, 99, -99), 7.0), ((99, -99, -99), 6.0), ((-99,) * 3, 0.0)):
        gates.heads[0].log_alpha.data = torch.tensor(heads).float()  # type: ignore[union-attr]
        assert gates.expected_size().item() == pytest.approx((1 + price) / 10, abs=1e-5)
    one = HardConcrete(1)
    gates.heads[0].log_alpha.data = torch.tensor([99.0, 99.0, 0.0])  # type: ignore[union-attr]
    one.log_alpha.data.zero_()
    assert gates.expected_size().item() == pytest.approx((1 + 7 + 2 * one.open().item()) / 10, abs=1e-5)


def test_the_multipliers_hold_it_to_its_size() -> None:
    """Gates are worth different amounts; the most valuable stay, and the size is the target's."""
    torch.manual_seed(3)
    gates = LearnedGates([4, 4], [16, 16], even(4, 16, 8.0, 2.0))
    worth = torch.linspace(0.0, 0.2, 16)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    for _ in range(600):
        _, neurons, _ = gates.values()
        loss = -sum((gate * worth).sum() for gate in neurons) + gates.penalty(0.6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gates.expected_size().item() == pytest.approx(0.6, abs=0.05)
    assert bool((gates.multipliers > 0).any())
    kept = gates.eval().values()[1][0].detach()
    assert float(kept[8:].mean()) > float(kept[:8].mean())


# What stays in the end


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    size=st.floats(0.2, 1.0),
    multiple=st.sampled_from([1, 2, 3]),
    shift=st.sampled_from([-4.0, 0.0, 4.0]),
    heads=st.sampled_from([(2, 3, 1), (0, 2, 2), (0, 0, 0)]),
)
def test_the_threshold_is_the_lowest_one_that_the_size_allows(
    seed: int, size: float, multiple: int, shift: float, heads: tuple[int, ...]
) -> None:
    """Against every threshold, tried one after another."""
    torch.manual_seed(seed)
    prices = even(3, 7, 5.0, 1.0, 2.0, 4.0)
    gates = LearnedGates(heads, [7, 5, 6], prices)
    for parameter in gates.parameters():
        parameter.data.normal_(0, 2).add_(shift)
    size = max(size, (4 + 2 + 5) / gates.whole)
    alpha = [g.log_alpha.tolist() for g in (*gates.heads, *gates.neurons)]  # type: ignore[union-attr]
    of_layers = gates.layers.log_alpha.tolist()
    best = max(range(3), key=of_layers.__getitem__)

    def cut(threshold: float, of_layer: float | None = None) -> list[tuple[int, int] | None]:
        of_layer = threshold if of_layer is None else of_layer
        found: list[tuple[int, int] | None] = []
        for layer in range(3):
            h, n = (sum(a >= threshold for a in alpha[place]) for place in (layer, 3 + layer))
            if layer == best:
                h, n = max(h, min(1, heads[layer])), n if heads[layer] else max(n, multiple)
            n = n if n == (7, 5, 6)[layer] else n // multiple * multiple
            alive = (layer == best or of_layers[layer] >= of_layer) and h + n > 0
            found.append((h, n) if alive else None)
        return found

    zero = math.log((0.1 / 1.2) / (1 - 0.1 / 1.2))  # where a gate is 0 without chance
    every = sorted([a for group in (*alpha, of_layers) for a in group], reverse=True)
    room = size * gates.whole + 1e-9
    both = [a for a in [math.inf, *every] if prices.total(cut(a)) <= room][-1]
    both = max(both, zero)
    fits = [sizes for a in [math.inf, *every] if prices.total(sizes := cut(a, both)) <= room]
    kept = gates.structure(size, multiple)
    found = [None] * 3
    for layer, units, neurons in zip(kept.layers, kept.heads, kept.neurons, strict=True):
        found[layer] = (len(units), len(neurons))  # type: ignore[call-overload]
        for place, indices in ((layer, units), (3 + layer, neurons)):
            gone = [a for i, a in enumerate(alpha[place]) if i not in indices]
            assert all(alpha[place][i] >= max(gone, default=-math.inf) for i in indices)
    assert found == fits[-1]
    assert prices.total(found) <= room


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
def test_factors_go_into_the_weights(
    kind: str, make_backbone: Callable[..., Pretrained], labelled: Callable[..., Batch]
) -> None:
    backbone, batch = make_backbone(kind), labelled()
    model: Any = backbone.model
    parts = anatomy(model)
    heads, neurons = [p.heads for p in parts], [p.neurons for p in parts]
    learned = LearnedGates(heads, neurons, even(max(heads), max(neurons), 1.0, 1.0)).eval()
    for gate in (*learned.heads, *learned.neurons):
        gate.log_alpha.data.uniform_(-2, 3)  # type: ignore[union-attr]
    learned.layers.log_alpha.data.fill_(99.0)
    gates = Gates(model)
    gates.attach(model)
    with torch.no_grad():
        of_heads, of_neurons, layers = learned.values()
        gates.set_values(heads=of_heads, neurons=of_neurons, layers=layers)
        wanted = backbone(batch).last_TD
        gates.detach()
        dense = backbone(batch).last_TD
        learned.multiply_into(model)
        found = backbone(batch).last_TD
    assert float((found - wanted).abs().max()) < 1e-5 < float((dense - wanted).abs().max())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HardConcrete(2, open=1.0), r"open must be in \(0, 1\), got 1.0"),
        (lambda: LearnedGates([2], [3, 4], even(2, 4, 1, 1)), r"must be of as many layers, got \[2\] and \[3, 4\]"),
        (lambda: LearnedGates([2], [3], even(2, 3, 1, 1)).penalty(0.0), r"target must be in \(0, 1\], got 0.0"),
        (
            lambda: LearnedGates([2] * 3, [8] * 3, even(2, 8, 4, 1, 1)).structure(0.1, 8),
            r"a model at 0.1 of its cost can't be reached: one layer with a head or 8 neurons has 0.176 of it",
        ),
    ],
)
def test_mistakes(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=said):
        make()
