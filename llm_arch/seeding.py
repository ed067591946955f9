"""Seeds as pure functions of where the run is, so that nothing about randomness has to be saved or restored."""

from __future__ import annotations

import os

import torch

_MASK = (1 << 64) - 1


def run_seed() -> int:
    """The seed of the run, as `seed_everything` set it; 0 when it was never called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mix(*parts: int) -> int:
    """A well-spread 63-bit number from the parts (SplitMix64, Steele et al. 2014): near inputs give unrelated seeds."""
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the random numbers that are drawn in training on this device.

    As `torch.manual_seed`, which notes for every other kind of device, each time, where in the code it was called: up
    to a millisecond, once a micro-batch.

    Args:
        seed: in [0, 2^63).
        device: where the model is.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
