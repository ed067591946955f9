"""Sequences one after another as the rows of a grid, for models that run padded.

Legend: T tokens, B sequences, L longest sequence, R chosen sequences, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from llm_arch.backbones.packed import PackedMap
from llm_arch.types import Batch


class Grid:
    """Where a batch's tokens lie in a (B, L) grid, whatever the batch's layout.

    Args:
        batch: flat or padded.

    Attributes:
        packed: the map of a flat batch; None where it lies in a grid already.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.size = batch.starts.shape[0]
        self.packed = PackedMap(batch) if batch.valid is None else None

    @cached_property
    def real_BL(self) -> Tensor:
        """Which cells hold a token."""
        if self.packed is None:
            assert self._batch.valid is not None
            return self._batch.valid.view(self.size, -1)
        lengths_B = self._batch.lengths
        return torch.arange(self.packed.longest, device=lengths_B.device) < lengths_B[:, None]

    def pad(self, values: Tensor) -> Tensor:
        """(T, …) → (B, L, …)."""
        return self.packed.pad(values) if self.packed else values.view(self.size, -1, *values.shape[1:])

    def unpad(self, grid: Tensor) -> Tensor:
        """(B, L, …) → (T, …), in the batch's layout."""
        return self.packed.unpad(grid) if self.packed else grid.flatten(0, 1)

    def inputs(self, words: Tensor, table: nn.Embedding, pad: int | None) -> dict[str, Tensor]:
        """What a model of transformers reads; padding where there is no token, as tokenizers give: convolutions see it.

        Args:
            words: (T,) token ids, or (T, D) their embeddings.
            table: the token embeddings.
            pad: the padding token; the first token if there is none.
        """
        pad = pad or 0
        if words.dim() == 1:
            fields = {"input_ids": self.pad(words).masked_fill(~self.real_BL, pad)}
        else:
            empty_D = table(torch.tensor(pad, device=words.device)).to(words.dtype)
            fields = {"inputs_embeds": torch.where(self.real_BL[..., None], self.pad(words), empty_D)}
        # Zeros and ones, as tokenizers give: some models calculate with it.
        return fields | {"attention_mask": self.real_BL.long()}


def left_padded(batch: Batch, values: Tensor, rows: Sequence[int], fill: int) -> Tensor:
    """(R, L): of the chosen sequences one value a token, filled up in front, since texts go on at their ends.

    Args:
        batch: flat or padded.
        values: (T,).
        rows: which sequences, R numbers.
        fill: what stands in front.
    """
    starts, lengths = batch.starts.tolist(), batch.lengths.tolist()
    grid = values.new_full((len(rows), max(lengths[row] for row in rows)), fill)
    for i, row in enumerate(rows):
        grid[i, grid.shape[1] - lengths[row] :] = values[starts[row] : starts[row] + lengths[row]]
    return grid
