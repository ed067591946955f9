"""Rows of which some words or tokens are replaced or taken out, for methods that need nothing else of a model.

Legend: N rows that are run, K tokens of these, U words or tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from llm_arch.interpret.baselines import Replaced, replacement
from llm_arch.interpret.method import Given
from llm_arch.interpret.rows import read_of
from llm_arch.interpret.words import Unit
from llm_arch.types import UserError

By = Literal["words", "tokens"]


class Replacing:
    """The number of each row where some of its words or tokens are not there.

    Args:
        given: the rows.
        by: whether whole words go, or single tokens.
        baseline: what comes in their place; `remove` for nothing.
    """

    def __init__(self, given: Given, by: By, baseline: Replaced | None) -> None:
        self.function = given.function
        self.units: Sequence[Sequence[Unit]] = given.words if by == "words" else given.tokens
        self.by = by
        self.token, self.baseline = replacement(given, baseline)

    @torch.no_grad()
    def __call__(self, rows: Sequence[int], gone: Sequence[Sequence[int]]) -> Tensor:
        """(N,) numbers.

        Args:
            rows: which rows, each as often as wanted.
            gone: of each, which of its U words or tokens are not there.
        """
        found = []
        for part in self.function.rows.chunks(rows, self.function.tokens):
            own = list(rows[part])
            taken = self.function.rows.take(own)
            read = read_of(taken.batch)
            gone_K = self._tokens(own, gone[part], read.input_ids)
            if self.token is None and bool(gone_K.any()):
                batch = self.function.rows.take(own, ~gone_K).batch
            elif self.token is None:
                batch = taken.batch
            else:
                changed = replace(read, input_ids=read.input_ids.masked_fill(gone_K, self.token))
                batch = changed if taken.batch.source is None else replace(taken.batch, source=changed)
            found.append(self.function.run(own, batch))
        return torch.cat(found)

    def _tokens(self, rows: Sequence[int], gone: Sequence[Sequence[int]], like_K: Tensor) -> Tensor:
        """(K,) whether each token is gone."""
        places: list[int] = []
        first = 0
        for row, units in zip(rows, gone, strict=True):
            places += [first + token for unit in units for token in self.units[row][unit].tokens]
            first += self.function.rows.lengths[row]
        gone_K = torch.zeros_like(like_K, dtype=torch.bool)
        gone_K[torch.tensor(places, dtype=torch.long, device=like_K.device)] = True
        return gone_K

    def scores(self, of_units: Sequence[Tensor]) -> Tensor:
        """Scores as an `Attribution` has them: of words one after another, or of the batch's tokens.

        What stands in several windows has its score where it stands first.

        Args:
            of_units: (U,) of each row.
        """
        if self.by == "words":
            return torch.cat([*of_units])
        first_R = self.function.rows.first_R.tolist()
        places = [first + unit.tokens[0] for first, units in zip(first_R, self.units, strict=True) for unit in units]
        joined = torch.cat([*of_units])
        scores_T = joined.new_zeros(len(self.function.rows.read.input_ids))
        scores_T[torch.tensor(places, dtype=torch.long, device=joined.device)] = joined
        return scores_T


def check_by(by: str) -> None:
    """Raise UserError where this is neither words nor tokens."""
    if by not in ("words", "tokens"):
        raise UserError(f"by must be words or tokens, got {by!r}")
