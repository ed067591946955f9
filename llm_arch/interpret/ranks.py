"""How alike two rankings are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kendall(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's τ-b (1945), in [-1, 1]; None where either is the same for all."""
    a, b = (np.sign(np.subtract.outer(x, x)) for x in (one, other))
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else None


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's ρ, in [-1, 1]: the correlation of mean ranks; None where either is the same for all."""
    ranks = [_ranks(np.asarray(x, dtype=float)) for x in (one, other)]
    if any(rank.std() == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from the lowest; those that are equal have their mean."""
    below = (values[:, None] > values).sum(1)
    same = (values[:, None] == values).sum(1)
    ranks: np.ndarray = below + (same - 1) / 2
    return ranks
