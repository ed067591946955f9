"""Some rows of a flat batch, each as often as wanted, as a batch of their own.

Legend: T tokens of the batch, R rows, N rows that are taken, S sequences and K tokens of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from llm_arch.types import Batch, UserError, Words


class Taken(NamedTuple):
    """Rows of a batch, and where their tokens were.

    Attributes:
        batch: N rows.
        token_K: where each of their tokens stands in the batch that they were taken of.
        row_K: which of the N rows each belongs to.
    """

    batch: Batch
    token_K: Tensor
    row_K: Tensor


def read_of(batch: Batch) -> Batch:
    """The batch whose tokens are explained: what the model reads, of an encoder–decoder the encoder's side."""
    return batch if batch.source is None else batch.source


class Rows:
    """The rows of a flat batch, to be taken. Of an encoder–decoder tokens are those of the source.

    Args:
        batch: in the flat layout. Of its labels only `positions` and `targets`, which tell language models where they
            are asked, are of use.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.read = batch, read_of(batch)
        self._reads = _Sequences(self.read)
        self._writes = None if batch.source is None else _Sequences(replace(batch, source=None))
        self.row_T, self.first_R, self.count_R = self._reads.row_T, self._reads.first_R, self._reads.count_R
        self.lengths = self.count_R.tolist()

    def take(self, rows: Sequence[int], keep_K: Tensor | None = None) -> Taken:
        """These rows.

        Args:
            rows: N numbers of rows, in any order, also several times.
            keep_K: (K,) of the tokens that are taken, which stay; None for all. What stays moves up, and where a
                language model was asked at a token that goes, it is asked at the one before it.

        Raises:
            UserError: nothing of a sequence stays, or the head reads words, which can't go.
        """
        read = self._reads.take(rows, keep_K)
        if self._writes is None:
            return read
        return read._replace(batch=replace(self._writes.take(rows).batch, source=read.batch))

    def chunks(self, rows: Sequence[int], tokens: int) -> Iterator[slice]:
        """Cut a sequence of row numbers so that each part has at most so many tokens, and at least a row."""
        start = total = 0
        for i, row in enumerate(rows):
            if i > start and total + self.lengths[row] > tokens:
                yield slice(start, i)
                start, total = i, 0
            total += self.lengths[row]
        if start < len(rows):
            yield slice(start, len(rows))


class _Sequences:
    """The rows of a flat batch, without an encoder's `source`."""

    def __init__(self, batch: Batch) -> None:
        assert batch.valid is None
        self.batch, row_B = batch, batch.row_of_sequence
        self.row_T = row_B[batch.segments]
        self._sequences = _spans(row_B, batch.rows)
        self.first_R, self.count_R = _spans(self.row_T, batch.rows)
        self._words = None if batch.words is None else _spans(batch.words.row, batch.rows)
        positions = batch.labels.get("positions")
        self._cells = None if positions is None else _spans(self.row_T[positions], batch.rows)

    def take(self, rows: Sequence[int], keep_K: Tensor | None = None) -> Taken:
        """As `Rows.take`."""
        batch, row_N = self.batch, torch.tensor(rows, device=self.row_T.device)
        sequence_S, owner_S = _ragged(row_N, *self._sequences)
        lengths_S = batch.lengths[sequence_S]
        token_K, segment_K = _ragged(sequence_S, batch.starts, batch.lengths)
        moved_N = _before(self.count_R[row_N]) - self.first_R[row_N]  # what is added to a token's number
        place_K = torch.arange(len(token_K), device=token_K.device)
        if keep_K is not None:
            if batch.words is not None:
                raise UserError("this model says something of each word, so none can be taken out; replace it instead")
            place_K = (keep_K.cumsum(0) - 1).clamp(min=0)
            lengths_S = torch.zeros_like(lengths_S).index_add(0, segment_K, keep_K.long())
            if bool((lengths_S == 0).any()):
                raise UserError("without its words a text has no tokens left for this model; replace them instead")
        labels, words = {}, None
        if self._cells is not None:
            cell_M, owner_M = _ragged(row_N, *self._cells)
            asked_M = place_K[batch.labels["positions"][cell_M] + moved_N[owner_M]]
            first_S = _before(lengths_S)  # of each sequence that is left, at least its first
            if keep_K is not None:
                sequence_M = segment_K[batch.labels["positions"][cell_M] + moved_N[owner_M]]
                asked_M = torch.maximum(asked_M, first_S[sequence_M])
            labels["positions"] = asked_M
            if "targets" in batch.labels:
                labels["targets"] = batch.labels["targets"][cell_M]
        if self._words is not None:
            assert batch.words is not None
            word_W, owner_W = _ragged(row_N, *self._words)
            token_W = batch.words.token[word_W] + moved_N[owner_W]
            words = Words(token_W, owner_W, batch.words.start[word_W], batch.words.end[word_W])
        if keep_K is not None:
            token_K, segment_K = token_K[keep_K], segment_K[keep_K]
        starts_S = _before(lengths_S)
        types = batch.token_type_ids
        taken = replace(
            batch,
            input_ids=batch.input_ids[token_K],
            position_ids=torch.arange(len(token_K), device=token_K.device) - starts_S[segment_K],
            segments=segment_K,
            starts=starts_S,
            lengths=lengths_S,
            index=owner_S,
            token_type_ids=None if types is None else types[token_K],
            labels=labels,
            words=words,
            rows=len(rows),
            texts={},
        )
        return Taken(taken, token_K, owner_S[segment_K])


def _spans(row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(R,) the first of each row's, and (R,) how many; they stand together."""
    count_R = torch.bincount(row, minlength=rows)
    return _before(count_R), count_R


def _before(counts: Tensor) -> Tensor:
    """How many come before each."""
    return counts.cumsum(0) - counts


def _ragged(chosen: Tensor, firsts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers `first … first + count - 1` of each chosen one after another, and whose each is."""
    own = counts[chosen]
    whose = torch.arange(len(chosen), device=chosen.device).repeat_interleave(own)
    place = torch.arange(len(whose), device=chosen.device) - _before(own)[whose]
    return firsts[chosen][whose] + place, whose
