"""Which tokens a masked language model has to guess, and what stands there instead.

A pure function of (seed, epoch, piece): it does not matter in which batch, order or process a piece comes, and a
resumed run sees the same masks.

Legend: T tokens, B sequences, N tokens that may be masked, U units of these that are masked together, M masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_arch.corpus.randomness import Bits, key_of, random_bits, uniform
from llm_arch.corpus.surfaces import Words
from llm_arch.types import UserError

Numbers = NDArray[np.int64]
Kind = Literal["token", "word", "span"]

# SpanBERT (Joshi et al. 2020): lengths of spans, in words, from a geometric distribution cut at ten; 3.8 on average.
_SPAN_STOP, _SPAN_LONGEST = 0.2, 10
_ROW_BITS = 44  # of a 64-bit number that sorts units: above them the row, below them chance
_CHOICE, _KIND = 101, 102  # keep the numbers of one use apart from those of another


@dataclass(frozen=True, eq=False)
class Masking:
    """Masks tokens of sequences (BERT; Devlin et al. 2019).

    Args:
        special: (V,) tokens that are never masked, and never stand in for another.
        mask: id of the mask token.
        words: which tokens begin words; not needed for single tokens.
        kind: `token` masks single tokens, exactly max(1, round(rate · n)) of n; `word` whole words, and `span` runs of
            words: as many as come nearest to that number.
        rate: share of the tokens to guess, in (0, 1).
        mask_share: share of these that the mask token replaces; alike over a span.
        random_share: share of these that a random token replaces. The rest stays as it is.
    """

    special: NDArray[np.bool_]
    mask: int
    words: Words | None = None
    kind: Kind = "token"
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        assert self.words is not None or self.kind == "token"
        check_shares(self.rate, self.mask_share, self.random_share)
        object.__setattr__(self, "_ordinary", np.flatnonzero(~self.special))

    def __call__(
        self, ids_T: Numbers, lengths_B: Numbers, index_B: Numbers, seed: int, epoch: int
    ) -> tuple[Numbers, Numbers]:
        """Choose what to mask.

        Args:
            ids_T: token ids.
            lengths_B: tokens of each sequence.
            index_B: number of each sequence in its data set.
            seed: seed of the run.
            epoch: number of the epoch.

        Returns:
            Ascending places (M,) of the tokens to guess, and the ids (M,) that stand there instead.
        """
        open_N = np.flatnonzero(~self.special[ids_T])
        row_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
        row_N = row_T[open_N]
        position_N = open_N - (np.cumsum(lengths_B) - lengths_B)[row_N]
        units = _Units(open_N, row_N, position_N, self._unit_starts(ids_T, open_N, row_N), len(lengths_B))
        keys_B = random_bits(key_of(seed, epoch, _CHOICE), index_B)
        chance_U = random_bits(keys_B[units.row], units.position)
        source_U = np.arange(len(units.row))
        if self.kind == "span":
            chance_U, source_U = units.spread(chance_U, _span_lengths(chance_U))
        chosen_N = units.nearest(chance_U, self.rate)[units.of]
        kind_N = units.position[source_U[units.of]] if self.kind == "span" else position_N
        kind_M, row_M = kind_N[chosen_N], row_N[chosen_N]
        places_M = open_N[chosen_N]
        keys_B = random_bits(key_of(seed, epoch, _KIND), index_B)
        drawn_M = uniform(random_bits(keys_B[row_M], kind_M))
        other_M = self._another(random_bits(random_bits(keys_B[row_M], position_N[chosen_N]), np.zeros(1)))
        kept_M = np.where(drawn_M < self.mask_share + self.random_share, other_M, ids_T[places_M])
        return places_M, np.where(drawn_M < self.mask_share, self.mask, kept_M)

    def _unit_starts(self, ids_T: Numbers, open_N: Numbers, row_N: Numbers) -> NDArray[np.bool_]:
        """(N,) whether a unit begins with each token that may be masked."""
        if self.words is None or self.kind == "token":
            return np.ones(len(open_N), dtype=bool)
        starts_N = self.words.starts(ids_T)[open_N]
        starts_N[1:] |= (row_N[1:] != row_N[:-1]) | (open_N[1:] != open_N[:-1] + 1)
        return starts_N

    def _another(self, bits: Bits) -> Numbers:
        """Tokens at random, none of them special."""
        ordinary: Numbers = self._ordinary  # type: ignore[attr-defined]
        return ordinary[bits % np.uint64(len(ordinary))]


class _Units:
    """The units of a batch: tokens, or words.

    Args:
        open_N: places of the tokens that may be masked.
        row_N: row of each.
        position_N: position of each in its row.
        starts_N: whether it begins a unit.
        rows: B.
    """

    def __init__(
        self, open_N: Numbers, row_N: Numbers, position_N: Numbers, starts_N: NDArray[np.bool_], rows: int
    ) -> None:
        self.of = np.cumsum(starts_N) - 1  # (N,)
        first_U = np.flatnonzero(starts_N)
        self.row = row_N[first_U]
        self.position = position_N[first_U]
        self.sizes = np.bincount(self.of, minlength=len(first_U))
        self.tokens_B = np.bincount(row_N, minlength=rows)
        # Units lie in one run where neither a border of rows nor a special token is between them.
        breaks_N = np.ones(len(open_N), dtype=bool)
        breaks_N[1:] = (row_N[1:] != row_N[:-1]) | (open_N[1:] != open_N[:-1] + 1)
        self.run = np.cumsum(breaks_N)[first_U]

    def spread(self, chance_U: Bits, lengths_U: Numbers) -> tuple[Bits, Numbers]:
        """Spans from every unit on, of the given lengths: the first span that reaches a unit takes it.

        Returns:
            (U,) the chance of the span that each unit belongs to, and that span's first unit.
        """
        best_U, source_U = chance_U.copy(), np.arange(len(chance_U))
        for step in range(1, min(_SPAN_LONGEST, len(chance_U))):
            reaches = (lengths_U[:-step] > step) & (self.run[:-step] == self.run[step:])
            better = np.flatnonzero(reaches & (chance_U[:-step] < best_U[step:]))
            best_U[better + step] = chance_U[better]
            source_U[better + step] = better
        return best_U, source_U

    def nearest(self, chance_U: Bits, rate: float) -> NDArray[np.bool_]:
        """(U,) units in the order of chance, in each row until their tokens are as near to the rate as can be."""
        goal_B = np.maximum(1, np.rint(rate * self.tokens_B)).astype(np.int64)
        goal_U = goal_B[self.row]
        # A word that is far too long for the row's share comes last: half of a row would be masked with it.
        late_U = self.sizes > 2 * goal_U
        order = np.argsort(
            (self.row.astype(np.uint64) << np.uint64(_ROW_BITS))
            | (late_U.astype(np.uint64) << np.uint64(_ROW_BITS - 1))
            | (chance_U >> np.uint64(64 - _ROW_BITS + 1)),
            kind="stable",
        )
        sizes_U, row_U = self.sizes[order], self.row[order]
        before_U = np.cumsum(sizes_U) - sizes_U
        before_U -= (np.cumsum(self.tokens_B) - self.tokens_B)[row_U]
        chosen_U = np.empty(len(order), dtype=bool)
        chosen_U[order] = (2 * before_U + sizes_U <= 2 * goal_U[order]) | (before_U == 0)
        return chosen_U


def _span_lengths(bits_U: Bits) -> Numbers:
    """A length for each unit, from bits that its rank does not use twice: those of another hash."""
    drawn_U = uniform(random_bits(bits_U, np.zeros(1)))
    whole = 1 - (1 - _SPAN_STOP) ** _SPAN_LONGEST
    return 1 + np.floor(np.log1p(-drawn_U * whole) / np.log(1 - _SPAN_STOP)).astype(np.int64)


def check_shares(rate: float, mask_share: float, random_share: float) -> None:
    """Raise UserError where a share can't be used."""
    if not 0 < rate < 1:
        raise UserError(f"data.mask_rate must be above 0 and below 1, got {rate}")
    if min(mask_share, random_share) < 0 or mask_share + random_share > 1:
        raise UserError(
            f"data.mask_share and data.random_share must not be negative nor more than 1 together, "
            f"got {mask_share} and {random_share}"
        )
