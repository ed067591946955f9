"""The solver against all models that there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.compression.prices import Prices
from llm_arch.compression.solver import Losses, solve
from llm_arch.types import UserError


def random_case(seed: int, layers: int, heads: int, neurons: int) -> tuple[Losses, Prices]:
    """Whole costs, so that bins can be exact."""
    rng = np.random.default_rng(seed)

    def falling(count: int) -> np.ndarray:
        return np.concatenate([np.sort(rng.integers(0, 50, count))[::-1], [0]]).astype(float)

    losses = Losses(
        [falling(heads) for _ in range(layers)],
        [falling(neurons) for _ in range(layers)],
        rng.integers(0, 80, layers).astype(float),
    )
    prices = Prices(
        np.cumsum([0, *rng.integers(1, 5, heads)]).astype(float),
        np.cumsum([0, *rng.integers(1, 5, neurons)]).astype(float),
        float(rng.integers(0, 4)),
        float(rng.integers(0, 6)),
    )
    return losses, prices


def loss_of(losses: Losses, sizes: list[tuple[int, int] | None]) -> float:
    return sum(
        losses.layers[i] if size is None else losses.heads[i][size[0]] + losses.neurons[i][size[1]]
        for i, size in enumerate(sizes)
    )


def by_brute_force(losses: Losses, prices: Prices, budget: float, multiple: int = 1) -> float:
    def options(layer: int) -> list[tuple[int, int] | None]:
        most = len(losses.neurons[layer]) - 1
        neurons = [n for n in range(most + 1) if n % multiple == 0 or n == most]
        return [None, *((h, n) for h in range(len(losses.heads[layer])) for n in neurons if h or n)]

    found = [
        loss_of(losses, list(sizes))
        for sizes in itertools.product(*map(options, range(len(losses.layers))))
        if any(sizes) and prices.total(sizes) <= budget
    ]
    return min(found, default=math.inf)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 60))
def test_as_good_as_the_best_of_all(seed: int, layers: int, heads: int, neurons: int, budget: int) -> None:
    losses, prices = random_case(seed, layers, heads, neurons)
    best = by_brute_force(losses, prices, budget)
    if best == math.inf:
        with pytest.raises(UserError, match=r"can't be reached: the smallest model of this shape is [\d.]+x faster"):
            solve(losses, prices, budget)
        return
    bins = max(1, int(budget - prices.outside)) * 4  # whole costs fall on borders of bins
    found = solve(losses, prices, budget, bins=bins)
    assert len(found) == layers
    assert any(found)
    assert (0, 0) not in found
    assert prices.total(found) <= budget
    assert loss_of(losses, found) == best


@pytest.mark.parametrize("seed", range(5))
def test_real_costs(seed: int) -> None:
    """Off the borders of bins little is lost: no more than by a budget that is smaller by a bin a layer."""
    losses, whole = random_case(seed, 3, 3, 4)
    rng = np.random.default_rng(seed)
    prices = Prices(whole.heads * math.pi, whole.neurons * math.e, whole.layer + rng.random(), whole.outside)
    dense = prices.total([(3, 4)] * 3)
    for share in (0.4, 0.6, 0.8):
        budget = dense * share
        found = solve(losses, prices, budget, bins=2000)
        assert prices.total(found) <= budget
        assert loss_of(losses, found) >= by_brute_force(losses, prices, budget)
        assert loss_of(losses, found) <= by_brute_force(losses, prices, budget - 3 * budget / 2000)


def test_multiples() -> None:
    losses, prices = random_case(3, 2, 2, 7)
    for budget in (12.0, 20.0, 30.0):
        found = solve(losses, prices, budget, multiple=3, bins=4 * int(budget - prices.outside))
        assert all(size is None or size[1] in (0, 3, 6, 7) for size in found)
        assert loss_of(losses, found) == by_brute_force(losses, prices, budget, multiple=3)


def test_a_budget_for_all_keeps_all() -> None:
    losses, prices = random_case(1, 2, 3, 4)
    assert solve(losses, prices, prices.total([(3, 4)] * 2)) == [(3, 4)] * 2


def test_layers_of_unequal_size() -> None:
    """A model that was pruned before."""
    _, prices = random_case(1, 1, 4, 6)
    losses = Losses([np.array([5.0, 0]), np.array([4.0, 3, 2, 1, 0])], [np.array([9.0, 1, 0]), np.zeros(7)], np.ones(2))
    found = solve(losses, prices, prices.total([(1, 2), (4, 6)]) - 1)
    assert found[1] is None or found[1] < (4, 6)


def test_large_is_fast() -> None:
    losses = Losses([np.linspace(1, 0, 13) ** 2] * 12, [np.linspace(1, 0, 3073) ** 2] * 12, np.full(12, 3.0))
    prices = Prices(np.arange(13) * 1.0, np.arange(3073) / 100, 1.0, 3.0)
    found = solve(losses, prices, prices.total([(12, 3072)] * 12) / 2, multiple=32)
    assert 0.499 < prices.total(found) / prices.total([(12, 3072)] * 12) <= 0.5


def test_mistakes() -> None:
    losses, prices = random_case(0, 2, 2, 2)
    dense = prices.total([(2, 2)] * 2)
    smallest = prices.outside + prices.layer + min(prices.heads[1], prices.neurons[1])
    with pytest.raises(UserError, match="target 1e\\+03x can't be reached") as caught:
        solve(losses, prices, dense / 1000)
    assert f"{math.floor(100 * dense / smallest) / 100:.3g}x faster" in str(caught.value)
    for budget in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="the budget must be above 0"):
            solve(losses, prices, budget)
    for options in ({"multiple": 0}, {"bins": 0}):
        with pytest.raises(UserError, match="must be at least 1"):
            solve(losses, prices, 5.0, **options)
    with pytest.raises(ValueError, match="losses of 2 layers' heads, 1 layers' neurons"):
        Losses([np.zeros(2)] * 2, [np.zeros(2)], np.zeros(2))
    with pytest.raises(ValueError, match="must be finite"):
        Losses([np.array([np.nan, 0])], [np.zeros(2)], np.zeros(1))
