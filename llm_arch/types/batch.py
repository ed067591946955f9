"""Token sequences one after another, and what is known of them.

Legend: T tokens of the batch, B sequences, R rows, W words, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding

# Tokens of a sequence for which the blocks of attention kernels on a GPU are large enough.
SHORT = 128
Pooling = Literal["first", "last", "mean", "max"]


@dataclass(frozen=True)
class Words:
    """The words of a batch's rows: every word once, row by row in reading order.

    Where a long row was split into overlapping windows, a word stands in several of them; `token` points into the one
    that shows most of what surrounds it.

    Attributes:
        token: (W,) where among the batch's tokens the word's first subword lies.
        row: (W,) which of the batch's R rows it belongs to, 0 … R-1, ascending.
        start: (W,) its first character in the row's text.
        end: (W,) the character after its last.
    """

    token: Tensor
    row: Tensor
    start: Tensor
    end: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Words:
        """The same words on another device."""
        return self._with(lambda value: value.to(device, non_blocking=non_blocking))

    def _with(self, move: Callable[[Tensor], Tensor]) -> Words:
        return Words(*(move(getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Batch:
    """B token sequences, one after another, without padding between them.

    The padded layout of an export is the same type: T = B·L, `starts` = arange(B)·L, and `valid` marks real tokens.

    Attributes:
        input_ids: (T,) token ids.
        position_ids: (T,) position of each token in its own sequence, from 0.
        segments: (T,) which sequence a token belongs to, 0 … B-1.
        starts: (B,) index of each sequence's first token.
        lengths: (B,) tokens of each sequence, padding not counted.
        index: (B,) row number of each sequence in its data set.
        token_type_ids: (T,) 0 for the first text of a pair and 1 for the second, or None.
        valid: (T,) True for real tokens, or None in the flat layout, where all are.
        labels: what the head needs to compute its loss, by name; first dimension B, R, T or W, or told by other labels.
            Language models: `targets`, token ids to predict, at the cells `positions` or at all T; and `text_bytes`
            (R,), bytes of text that a row's targets stand for.
        words: the words of the rows, for tasks that say something of each word; else None.
        rows: R, the number of rows; below B where long rows were split into windows, which then follow each other.
        texts: what metrics over texts need of each row, by name, R values each: its text, the right answers. Never on
            a device.
        source: for encoder–decoders, the B sequences that the encoder reads, in the order of these, which are the
            decoder's; else None.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    starts: Tensor
    lengths: Tensor
    index: Tensor
    token_type_ids: Tensor | None = None
    valid: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    words: Words | None = None
    rows: int = -1
    texts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source: Batch | None = None

    def __post_init__(self) -> None:
        if self.rows < 0:
            object.__setattr__(self, "rows", len(self.starts))

    @property
    def size(self) -> int:
        """B, the number of sequences."""
        return self.starts.shape[0]  # `len` of a tensor takes five times as long

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        known: int | None = self.__dict__.get("_longest")
        return int(self.lengths.max()) if known is None else known

    @property
    def short_from(self) -> tuple[int, int]:
        """From which sequence, and so from which token, on all are short; (B, T) where the last one is not."""
        if "_short_from" in self.__dict__:
            known: tuple[int, int] = self.__dict__["_short_from"]
            return known
        long = (self.lengths > SHORT).nonzero()
        first = int(long[-1]) + 1 if len(long) else 0
        return first, int(self.lengths[:first].sum())

    @property
    def row_index(self) -> Tensor:
        """(R,) row number of each row in its data set."""
        return self.index if self.rows == self.size else torch.unique_consecutive(self.index)

    @property
    def row_of_sequence(self) -> Tensor:
        """(B,) which of the batch's R rows each sequence belongs to, 0 … R-1, ascending."""
        if self.rows == self.size:
            return torch.arange(self.size, device=self.index.device)
        return torch.unique_consecutive(self.index, return_inverse=True)[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device; itself where it is there already."""
        if self.input_ids.device == torch.device(device):
            return self
        return self._with(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from by itself; loaders call this."""
        return self._with(Tensor.pin_memory)

    def _with(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch, its tensors moved."""
        tensors: dict[str, Any] = {k: move(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        words = self.words._with(move) if self.words is not None else None
        source = self.source._with(move) if self.source is not None else None
        labels = {k: move(v) for k, v in self.labels.items()}
        moved = replace(self, **tensors, labels=labels, words=words, source=source)
        if self.size and self.lengths.device.type == "cpu":
            # A GPU would have to be waited for.
            moved.__dict__.update(_longest=self.longest, _short_from=self.short_from)
        return moved

    def first_token(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the state of each sequence's first token."""
        return hidden_TD[self.starts]

    def last_token(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the state of each sequence's last real token."""
        return hidden_TD[self.starts + self.lengths - 1]

    def mean(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the mean over each sequence's real tokens."""
        if self.valid is not None:
            hidden_TD = hidden_TD * self.valid[:, None].to(hidden_TD.dtype)
        total_BD = hidden_TD.new_zeros(self.size, hidden_TD.shape[1]).index_add(0, self.segments, hidden_TD)
        return total_BD / self.lengths[:, None].to(hidden_TD.dtype)

    def max(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the elementwise maximum over each sequence's real tokens."""
        if self.valid is not None:
            hidden_TD = hidden_TD.masked_fill(~self.valid[:, None], float("-inf"))
        low_BD = hidden_TD.new_full((self.size, hidden_TD.shape[1]), float("-inf"))
        return low_BD.scatter_reduce(0, self.segments[:, None].expand_as(hidden_TD), hidden_TD, "amax")

    def around(self, hidden_TD: Tensor, offsets: Sequence[int]) -> Tensor:
        """(T, K, D): the states at K distances from each token, zeros beyond its sequence's ends."""
        tokens = hidden_TD.shape[0]
        offsets_K = torch.tensor(offsets, device=hidden_TD.device)
        position_TK = self.position_ids[:, None] + offsets_K
        inside_TK = (position_TK >= 0) & (position_TK < self.lengths[self.segments][:, None])
        token_TK = torch.arange(tokens, device=hidden_TD.device)[:, None] + offsets_K
        rows = torch.cat([hidden_TD, hidden_TD.new_zeros(1, hidden_TD.shape[1])])
        # `embedding` gathers as `index_select` does, forward and backward in half the time on a CPU.
        return embedding(torch.where(inside_TK, token_TK, tokens), rows)

    def pool(self, hidden_TD: Tensor, pooling: Pooling) -> Tensor:
        """(B, D): one vector a sequence, by the named pooling."""
        return {"first": self.first_token, "last": self.last_token, "mean": self.mean, "max": self.max}[pooling](
            hidden_TD
        )
