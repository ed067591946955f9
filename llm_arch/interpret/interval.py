"""A mean with the interval that it lies in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_DRAWS = 2000


class Interval(NamedTuple):
    """A mean over rows with its 95 % confidence interval, by bootstrap (Efron 1979).

    Attributes:
        mean: over the rows that have a number.
        low: where the interval begins.
        high: where it ends.
        rows: how many have a number.
    """

    mean: float
    low: float
    high: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return self._asdict()

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(values: Iterable[float | None]) -> Interval | None:
    """Of the values that are there; None where there are none. The same values always give the same interval."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return None
    generator = np.random.default_rng(0)
    means = [known[generator.integers(len(known), size=len(known))].mean() for _ in range(_DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(known.mean()), float(low), float(high), len(known))
