"""Seeds as pure functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.seeding import mix, run_seed, seed_draws

NUMBERS = st.integers(-(1 << 70), 1 << 70)


def splitmix(state: int) -> int:
    """The first output of SplitMix64, written out from the paper's listing."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z // 2**27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z // 2**31)


@pytest.mark.parametrize(
    ("seed", "published"), [(0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)], ids=["zero", "rosetta"]
)
def test_mix_of_one_part_is_splitmix64(seed: int, published: int) -> None:
    assert splitmix(seed) == published
    assert mix(seed) == published >> 1


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_mix_chains_its_parts(parts: list[int]) -> None:
    state = 0
    for part in parts:
        state = splitmix((state + part) % 2**64)
    assert mix(*parts) == state >> 1
    assert 0 <= mix(*parts) < 2**63


def test_near_inputs_are_unrelated() -> None:
    seeds = {mix(seed, epoch, batch) for seed in range(20) for epoch in range(20) for batch in range(20)}
    assert len(seeds) == 20**3
    flipped = [(mix(0, i) ^ mix(0, i + 1)).bit_count() for i in range(500)]
    assert abs(sum(flipped) / len(flipped) - 63 / 2) < 1
    assert mix(1, 2) != mix(2, 1)
    assert mix(1) != mix(1, 0)


def test_run_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "31")
    assert run_seed() == 31


def test_draws_are_those_of_manual_seed() -> None:
    seed = mix(3)
    torch.manual_seed(seed)
    expected = torch.rand(5)
    seed_draws(seed, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_on_a_gpu_are_seeded_too() -> None:
    seed_draws(mix(3), torch.device("cuda"))
    expected = torch.rand(5, device="cuda")
    seed_draws(mix(3), torch.device("cuda"))
    assert torch.equal(torch.rand(5, device="cuda"), expected)
