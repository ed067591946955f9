"""Learnt gates against the distribution's closed forms, and against a size that they must reach."""

from __future__ import annotations

import pytest
import torch

from llm_arch.compression.l0 import HardConcrete, LearnedGates
from llm_arch.types import UserError


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
    gates = LearnedGates([2, 3], [4, 5], head_size=10.0, neuron_size=1.0)
    for parameter in gates.parameters():
        parameter.data.uniform_(-2, 2)
    total = 0.0
    for _ in range(4000):
        with torch.no_grad():
            heads, neurons, layers = gates.values()
        total += sum(
            float(layers[i] > 0) * (10 * int((heads[i] > 0).sum()) + int((neurons[i] > 0).sum())) for i in range(2)
        )
    assert gates.expected_size().item() == pytest.approx(total / 4000 / 59, abs=0.015)


def test_the_multipliers_hold_it_to_its_size() -> None:
    """Gates are worth different amounts; the most valuable stay, and the size is the target's."""
    torch.manual_seed(3)
    gates = LearnedGates([4, 4], [16, 16], head_size=8.0, neuron_size=2.0)
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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HardConcrete(2, open=1.0), r"open must be in \(0, 1\), got 1.0"),
        (lambda: LearnedGates([2], [3, 4], 1.0, 1.0), r"must be as many and have a size, got \[2\] and \[3, 4\]"),
        (lambda: LearnedGates([2], [3], 1.0, 1.0).penalty(0.0), r"target must be in \(0, 1\], got 0.0"),
    ],
)
def test_mistakes(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=said):
        make()
