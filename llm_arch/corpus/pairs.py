"""Pieces → pairs of texts, half of them wrong: for next-sentence prediction and sentence-order prediction.

A piece is cut in two where a sentence begins. Every other pair is then made wrong, as (seed, epoch, piece) decide: its
second half comes from another document (BERT; Devlin et al. 2019), or the halves change places (ALBERT; Lan et al.
2020). A false half is as much like a true one as the corpus allows (as long, from where a sentence begins, to where a
document ends if the true one did), so that only its content gives it away.

Legend: R rows, K rows with a false half, N tokens of all rows, P pieces.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llm_arch.corpus.pieces import Numbers, Pieces
from llm_arch.corpus.randomness import Bits, key_of, random_bits
from llm_arch.corpus.rows import Documents, PieceRows
from llm_arch.corpus.surfaces import Sentences

Objective = Literal["nsp", "sop"]
SHORTEST = 2  # tokens of a piece that can be cut in two

_PAIRS = 201  # keeps these numbers apart from those of other uses
_WRONG, _CUT, _TRY = 0, 1, 2  # the uses of a row's numbers
_START, _DOCUMENT = 0, 1  # and of those of one try
_TRIES = 4  # false halves drawn before one will do that does not begin with a sentence
_ATTEMPTS = 16  # documents drawn for a false half before any that is another will do
_SEARCHED = 64  # tokens in which a sentence must begin to be begun with


class PairRows(PieceRows):
    """Pieces as pairs.

    Args:
        store: the documents.
        pieces: where the pieces lie; each of two tokens at least.
        training: whether chance is to follow the seed of the run; else it is the same in every run.
        objective: `nsp` for halves of other documents, `sop` for halves in the wrong order.
        sentences: which tokens end sentences.
    """

    def __init__(
        self, store: Documents, pieces: Pieces, *, training: bool, objective: Objective, sentences: Sentences
    ) -> None:
        super().__init__(store, pieces, training=training)
        self.objective = objective
        self.sentences = sentences

    def __getitem__(self, numbers: list[int]) -> dict[str, Any]:
        """Columns of these pieces.

        Args:
            numbers: which, with their `epoch`.

        Returns:
            As `PieceRows`, `tokens` and `sizes` being of the first texts; `second_tokens` and `second_sizes`; and
            `label` (R,), 1 for pairs that were made wrong.
        """
        columns = super().__getitem__(numbers)
        tokens_N, sizes_R = columns["tokens"], columns["sizes"]
        row_N = np.repeat(np.arange(len(sizes_R)), sizes_R)
        first_R = np.cumsum(sizes_R) - sizes_R
        position_N = np.arange(len(tokens_N)) - first_R[row_N]
        number_R = np.asarray(numbers, dtype=np.int64)
        key = key_of(columns["seed"], getattr(numbers, "epoch", 0), _PAIRS)
        keys_R = random_bits(key, number_R)
        wrong_R = _draw(keys_R, _WRONG) % np.uint64(2) == 1
        cut_R, natural_R = self._cuts(tokens_N, position_N, row_N, first_R, keys_R)
        swapped_R = wrong_R if self.objective == "sop" else np.zeros_like(wrong_R)
        ahead_N = (position_N < cut_R[row_N]) ^ swapped_R[row_N]
        columns["tokens"], columns["sizes"] = tokens_N[ahead_N], np.where(swapped_R, sizes_R - cut_R, cut_R)
        second_R = sizes_R - columns["sizes"]
        if self.objective == "sop" or not wrong_R.any():
            columns |= {"second_tokens": tokens_N[~ahead_N], "second_sizes": second_R}
        else:
            parts: list[Any] = np.split(tokens_N[~ahead_N], np.cumsum(second_R)[:-1])
            wrong = np.flatnonzero(wrong_R)
            places = self._false_halves(number_R[wrong], second_R[wrong], natural_R[wrong], keys_R[wrong])
            bytes_R = columns["text_bytes"]
            bytes_R[wrong] *= cut_R[wrong] / sizes_R[wrong]
            for row, document, start, stop in zip(wrong.tolist(), *(place.tolist() for place in places), strict=True):
                parts[row] = self.store.read(document, start, stop)
                bytes_R[row] += self.store.text_bytes[document] * (stop - start) / self.store.lengths[document]
            columns["second_tokens"] = np.concatenate(parts, dtype=np.int64)
            columns["second_sizes"] = np.array([len(part) for part in parts])
        columns["label"] = wrong_R.astype(np.int64)
        return columns

    def _cuts(
        self, tokens_N: Numbers, position_N: Numbers, row_N: Numbers, first_R: Numbers, keys_R: Bits
    ) -> tuple[Numbers, NDArray[np.bool_]]:
        """Where each piece is cut: in front of a random sentence, or of a random token where no sentence begins.

        Returns:
            (R,) tokens of the first half, and whether a sentence begins with the second.
        """
        begins_N = self.sentences.starts(tokens_N) & (position_N > 0)
        chance_N = random_bits(_draw(keys_R, _CUT)[row_N], position_N) >> np.uint64(1)
        rank_N = chance_N | (begins_N.astype(np.uint64) << np.uint64(63))
        rank_N[position_N == 0] = 0
        best_R = np.maximum.reduceat(rank_N, first_R)
        found = np.flatnonzero(rank_N == best_R[row_N])[::-1]
        cut_R = np.empty(len(first_R), dtype=np.int64)
        cut_R[row_N[found]] = position_N[found]
        return cut_R, best_R >> np.uint64(63) == 1

    def _false_halves(
        self, number_K: Numbers, size_K: Numbers, natural_K: NDArray[np.bool_], keys_K: Bits
    ) -> tuple[Numbers, Numbers, Numbers]:
        """(K,) documents, starts and stops of what stands in for the second halves of pieces."""
        found = np.empty((3, len(number_K)), dtype=np.int64)
        pending = np.arange(len(number_K))
        for attempt in range(_TRIES):
            of = number_K[pending], size_K[pending], natural_K[pending]
            *places, good = self._try(*of, _draw(keys_K[pending], _TRY + attempt))
            found[:, pending] = places
            pending = pending[~good]
            if not len(pending):
                break
        return found[0], found[1], found[2]

    def _try(
        self, number_K: Numbers, size_K: Numbers, natural_K: NDArray[np.bool_], keys_K: Bits
    ) -> tuple[Numbers, Numbers, Numbers, NDArray[np.bool_]]:
        """As `_false_halves`, and whether they begin with a sentence where they should."""
        pieces, lengths = self.pieces, self.store.lengths
        ends_K = pieces.start[number_K] + pieces.length[number_K] == lengths[pieces.document[number_K]]
        document_K = self._others(number_K, size_K, keys_K)
        length_K = lengths[document_K]
        room_K = np.maximum(0, length_K - size_K)
        random_K = (_draw(keys_K, _START) % (room_K + 1).astype(np.uint64)).astype(np.int64)
        low_K = np.where(ends_K, room_K, random_K)
        high_K = np.where(ends_K, length_K - 1, np.minimum(low_K + _SEARCHED, room_K))
        searched_K = natural_K & (low_K > 0)  # a document begins with a sentence
        start_K = low_K.copy()
        start_K[searched_K] = self._first_sentences(document_K[searched_K], low_K[searched_K], high_K[searched_K])
        good_K = start_K >= 0
        start_K = np.where(good_K, start_K, low_K)
        return document_K, start_K, np.where(ends_K, length_K, np.minimum(start_K + size_K, length_K)), good_K

    def _first_sentences(self, document_K: Numbers, low_K: Numbers, high_K: Numbers) -> Numbers:
        """(K,) where the first sentence from `low` to `high` begins; -1 where none does."""
        if not len(document_K):
            return low_K
        places = zip(document_K.tolist(), (low_K - 1).tolist(), (high_K + 1).tolist(), strict=True)
        parts = [self.store.read(*place) for place in places]
        sizes_K = np.array([len(part) for part in parts])
        begin_K = np.cumsum(sizes_K) - sizes_K
        offset = np.arange(int(sizes_K.sum())) - np.repeat(begin_K, sizes_K)
        begins = self.sentences.starts(np.concatenate(parts, dtype=np.int64)) & (offset > 0)
        nearest_K = np.minimum.reduceat(np.where(begins, offset, np.iinfo(np.int64).max), begin_K)
        return np.where(nearest_K < sizes_K, low_K - 1 + nearest_K, -1)

    def _others(self, number_K: Numbers, size_K: Numbers, keys_K: Bits) -> Numbers:
        """(K,) documents of other texts, the likelier the longer, that hold `size` tokens where such are found."""
        own_K = self._keys[number_K]
        found_K, any_K = np.full(len(number_K), -1), np.full(len(number_K), -1)
        for attempt in range(_ATTEMPTS):
            piece_K = (_draw(keys_K, _DOCUMENT + attempt) % np.uint64(len(self))).astype(np.int64)
            document_K = self.pieces.document[piece_K]
            other_K = self._keys[piece_K] != own_K
            any_K = np.where((any_K < 0) & other_K, document_K, any_K)
            found_K = np.where(
                (found_K < 0) & other_K & (self.store.lengths[document_K] >= size_K), document_K, found_K
            )
            if (found_K >= 0).all():
                return found_K
        found_K = np.where(found_K < 0, any_K, found_K)
        for k in np.flatnonzero(found_K < 0):  # nearly all pieces are of one text
            others = np.flatnonzero(self._keys != own_K[k])
            found_K[k] = self.pieces.document[others[int(keys_K[k]) % len(others)]]
        return found_K

    @cached_property
    def _keys(self) -> Numbers:
        """(P,) the key of each piece's document."""
        return np.asarray(self.store.keys)[self.pieces.document]


def _draw(keys_R: Bits, use: int) -> Bits:
    """(R,) numbers of one use."""
    return random_bits(keys_R, np.array([use]))
