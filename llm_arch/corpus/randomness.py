"""Random numbers that are a pure function of where they are used: the same in any batch, order, process or resumed run.

Counters instead of a generator's state: each number is a hash of a key and of what it is for (a piece, a position).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_arch.seeding import mix

Bits = NDArray[np.uint64]

_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key_of(*parts: int) -> Bits:
    """(1,) a key from numbers such as seed, epoch and a number of the use, for `random_bits`."""
    return np.array([mix(*parts)], dtype=np.uint64)


def random_bits(keys: Bits, counters: NDArray[Any]) -> Bits:
    """64 random bits for each key and counter (SplitMix64, Steele et al. 2014, with the counter as its state).

    Args:
        keys: (1,) or (N,) what `key_of` or this function gave.
        counters: (N,) whole numbers from 0.
    """
    bits = keys + (counters.astype(np.uint64) + np.uint64(1)) * _STEP
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))


def uniform(bits: Bits) -> NDArray[np.float64]:
    """Numbers in [0, 1) of random bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
