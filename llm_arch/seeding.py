"""Seeds as pure functions of where the run is, so that nothing about randomness has to be saved or restored."""

from __future__ import annotations

import os

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
