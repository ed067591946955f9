"""Columns of rows → one batch of flat (or padded) tokens.

Legend: T tokens, B sequences, L longest sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_arch.types import Batch


def make_batch(
    columns: Mapping[str, list[Any]], layout: str = "flat", labels: dict[str, Tensor] | None = None
) -> Batch:
    """Columns `input_ids`, `token_type_ids` and `index` of B rows → a batch.

    Args:
        columns: token ids of each row, token types or None, and row numbers.
        layout: flat or padded.
        labels: the labels as the head wants them.
    """
    rows = columns["input_ids"]
    lengths_B = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    tokens = int(lengths_B.sum())
    starts_B = np.cumsum(lengths_B) - lengths_B
    segments_T = np.repeat(np.arange(len(rows)), lengths_B)
    positions_T = np.arange(tokens) - np.repeat(starts_B, lengths_B)
    flat = {"input_ids": rows}
    if columns["token_type_ids"][0] is not None:
        flat["token_type_ids"] = columns["token_type_ids"]
    values = {k: np.fromiter((x for row in v for x in row), dtype=np.int64, count=tokens) for k, v in flat.items()}
    valid_T = None
    if layout == "padded":
        longest = int(lengths_B.max())
        slots_T = segments_T * longest + positions_T
        values = {k: _spread(v, slots_T, len(rows) * longest) for k, v in values.items()}
        valid_T = torch.from_numpy(_spread(np.ones(tokens, dtype=bool), slots_T, len(rows) * longest))
        starts_B = np.arange(len(rows)) * longest
        segments_T, positions_T = np.repeat(np.arange(len(rows)), longest), np.tile(np.arange(longest), len(rows))
    return Batch(
        position_ids=torch.from_numpy(positions_T),
        segments=torch.from_numpy(segments_T),
        starts=torch.from_numpy(starts_B),
        lengths=torch.from_numpy(lengths_B),
        index=torch.as_tensor(columns["index"]),
        valid=valid_T,
        labels=labels or {},
        **{k: torch.from_numpy(v) for k, v in values.items()},
    )


def _spread(values: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    grid = np.zeros(size, dtype=values.dtype)
    grid[slots] = values
    return grid
