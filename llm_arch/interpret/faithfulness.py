"""How faithful scores are to the model: what its prediction loses without the words of the highest scores.

Legend: R rows, U words of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_arch.interpret.baselines import Replaced, check_baseline
from llm_arch.interpret.method import Given
from llm_arch.interpret.moved import moved
from llm_arch.interpret.ranks import kendall
from llm_arch.interpret.replacing import Replacing
from llm_arch.types import UserError

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # DeYoung et al. 2020
_SHARE = 0.2  # of the numbers that are no mean over shares

Scores = Sequence[Tensor]  # (U,) of each row


@dataclass(frozen=True)
class Faithfulness:
    """How faithful the scores of a row are.

    All but `tau` and `sensitivity` are differences of probabilities, or of the number itself where a head gives none.

    Attributes:
        comprehensiveness: what the prediction loses without the highest fifth of the words; more is better.
        sufficiency: what it loses with these words alone; less is better (both: DeYoung et al. 2020).
        aopc_comprehensiveness: the mean of the first over all shares of the words (AOPC: area over the perturbation
            curve; Samek et al. 2017).
        aopc_sufficiency: that of the second.
        tau: Kendall's τ of scores and what the prediction loses without each word alone, in [-1, 1]; None where either
            is the same for all words.
        sensitivity: the largest change of the scores, as a share of them, when embeddings move a little; less is better
            (Yeh et al. 2019). None for models without embeddings to move.
    """

    comprehensiveness: float
    sufficiency: float
    aopc_comprehensiveness: float
    aopc_sufficiency: float
    tau: float | None
    sensitivity: float | None = None


@dataclass(frozen=True)
class Tested:
    """The faithfulness of a row's scores beside that of random ones.

    Attributes:
        own: of the scores.
        random: of random scores.
    """

    own: Faithfulness
    random: Faithfulness

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**asdict(self.own), "random": asdict(self.random)}


class FaithfulnessTest:
    """Tests scores on the model that they are of. Its arguments are its settings.

    Args:
        baseline: what comes in the place of words, as in `Occlusion`.
        shares: which shares of the words AOPC is over, each in (0, 1]; a row's words are rounded up.
        draws: how often embeddings are moved; 0 leaves sensitivity out.
        radius: how far at most, as a share of the standard deviation of the embeddings.
        seed: of random scores and of how embeddings move.
    """

    def __init__(
        self,
        *,
        baseline: Replaced | None = None,
        shares: Sequence[float] = SHARES,
        draws: int = 4,
        radius: float = 0.1,
        seed: int = 0,
    ) -> None:
        check_baseline(baseline, ("mask", "pad", "unknown", "end", "remove"))
        if not shares or not all(0 < share <= 1 for share in shares):
            raise UserError(f"shares must be in (0, 1], got {list(shares)}")
        if draws < 0:
            raise UserError(f"draws must be at least 0, got {draws}")
        if not radius > 0:
            raise UserError(f"radius must be above 0, got {radius}")
        self.baseline, self.shares, self.draws, self.radius, self.seed = baseline, shares, draws, radius, seed

    def __call__(self, given: Given, scores: Scores, again: Callable[[], Scores], index: Sequence[int]) -> list[Tested]:
        """Test all rows.

        Args:
            given: the rows.
            scores: those of their words.
            again: makes them anew, of the model as it then is.
            index: numbers of the rows, which random scores depend on.
        """
        random = self._random(scores, index, 0)
        own, others = self._by_words(given, (scores, random))
        if self.draws and given.function.table.embedding_dim:  # a graph of another runtime shows none
            moved_scores, moved_random = [], []
            for draw in range(self.draws):
                with moved(given.function, self.radius, self.seed + draw):
                    moved_scores.append(again())
                moved_random.append(self._random(scores, index, 1 + draw))
            own = _with_sensitivity(own, scores, moved_scores)
            others = _with_sensitivity(others, random, moved_random)
        return [Tested(*pair) for pair in zip(own, others, strict=True)]

    def _random(self, scores: Scores, index: Sequence[int], draw: int) -> list[Tensor]:
        generators = [np.random.default_rng((self.seed, draw, row)) for row in index]
        pairs = zip(generators, scores, strict=True)
        return [torch.from_numpy(generator.standard_normal(len(own))) for generator, own in pairs]

    def _by_words(self, given: Given, several: Sequence[Scores]) -> list[list[Faithfulness]]:
        """What each of several scores says of the words that the prediction needs."""
        replacing = Replacing(replace(given, function=given.function.in_probability()), "words", self.baseline)
        rows = [_Row(len(units), [scores[i] for scores in several]) for i, units in enumerate(replacing.units)]
        runs = [(i, gone) for i, row in enumerate(rows) for gone in row.wanted((*self.shares, _SHARE))]
        found = replacing([i for i, _ in runs], [gone for _, gone in runs]).tolist()
        for (i, gone), value in zip(runs, found, strict=True):
            rows[i].found[gone] = value
        return [[row.tested(which, self.shares) for row in rows] for which in range(len(several))]


class _Row:
    """Which of a row's words go, and what the model says then.

    Args:
        count: U.
        several: scores of the words, by several methods.
    """

    def __init__(self, count: int, several: Scores) -> None:
        self.count, self.several = count, several
        self.orders = [scores.argsort(descending=True, stable=True).tolist() for scores in several]
        self.found: dict[tuple[int, ...], float] = {}

    def wanted(self, shares: Sequence[float]) -> list[tuple[int, ...]]:
        """Every set of words that is to go, once."""
        sets = [(), *((word,) for word in range(self.count))]
        sets += [part for order in self.orders for share in shares for part in self._parts(order, share)]
        return list(dict.fromkeys(sets))

    def _parts(self, order: list[int], share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The words of the highest scores, and all others."""
        top = math.ceil(share * self.count)
        return tuple(sorted(order[:top])), tuple(sorted(order[top:]))

    def _losses(self, order: list[int], share: float) -> tuple[float, float]:
        highest, others = self._parts(order, share)
        return self.found[()] - self.found[highest], self.found[()] - self.found[others]

    def tested(self, which: int, shares: Sequence[float]) -> Faithfulness:
        """The numbers of one of the scores."""
        order = self.orders[which]
        comprehensiveness, sufficiency = zip(*(self._losses(order, share) for share in shares), strict=True)
        alone = [self.found[()] - self.found[word,] for word in range(self.count)]
        return Faithfulness(
            *self._losses(order, _SHARE),
            float(np.mean(comprehensiveness)),
            float(np.mean(sufficiency)),
            kendall(self.several[which].tolist(), alone),
        )


def _with_sensitivity(found: list[Faithfulness], scores: Scores, changed: Sequence[Scores]) -> list[Faithfulness]:
    most = [
        max(float((other[i] - own).norm()) for other in changed) / max(float(own.norm()), torch.finfo(own.dtype).tiny)
        for i, own in enumerate(scores)
    ]
    return [replace(one, sensitivity=value) for one, value in zip(found, most, strict=True)]
