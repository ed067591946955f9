"""Columns of rows → one batch of flat (or padded) tokens.

Legend: T tokens, R rows, B sequences (windows of rows), W words, L longest sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_arch.types import Batch, Words

Numbers = NDArray[np.int64]


def make_batch(
    columns: Mapping[str, list[Any]],
    layout: str = "flat",
    labels: dict[str, Tensor] | None = None,
    texts: dict[str, list[Any]] | None = None,
) -> Batch:
    """Columns of R rows → a batch.

    Args:
        columns: `input_ids`: token ids of each row; `token_type_ids`: token types or None; `index`: row numbers. Where
            long rows are several sequences, `windows`: tokens of each, or None for one. Where words count,
            `word_token`: where among the row's tokens each word's first is, and `word_start` and `word_end`: where the
            word lies in the text.
        layout: flat or padded.
        labels: the labels as the head wants them.
        texts: what metrics over texts need, R values each.
    """
    rows = columns["input_ids"]
    sizes_R = _sizes(rows)
    parts = [cut or (size,) for cut, size in zip(columns.get("windows") or [None] * len(rows), sizes_R, strict=True)]
    lengths_B = _joined(parts)
    tokens = int(lengths_B.sum())
    starts_B = np.cumsum(lengths_B) - lengths_B
    segments_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
    positions_T = np.arange(tokens) - np.repeat(starts_B, lengths_B)
    flat = {"input_ids": rows}
    if columns["token_type_ids"][0] is not None:
        flat["token_type_ids"] = columns["token_type_ids"]
    values = {name: _joined(column) for name, column in flat.items()}
    valid_T, slots_T = None, np.arange(tokens)
    if layout == "padded":
        longest, count = int(lengths_B.max()), len(lengths_B)
        slots_T = segments_T * longest + positions_T
        values = {k: _spread(v, slots_T, count * longest) for k, v in values.items()}
        valid_T = torch.from_numpy(_spread(np.ones(tokens, dtype=bool), slots_T, count * longest))
        starts_B = np.arange(count) * longest
        segments_T, positions_T = np.repeat(np.arange(count), longest), np.tile(np.arange(longest), count)
    return Batch(
        position_ids=torch.from_numpy(positions_T),
        segments=torch.from_numpy(segments_T),
        starts=torch.from_numpy(starts_B),
        lengths=torch.from_numpy(lengths_B),
        index=torch.from_numpy(np.repeat(np.asarray(columns["index"]), _sizes(parts))),
        valid=valid_T,
        labels=labels or {},
        words=_words(columns, sizes_R, slots_T) if "word_token" in columns else None,
        rows=len(rows),
        texts=texts or {},
        **{k: torch.from_numpy(v) for k, v in values.items()},
    )


def _words(columns: Mapping[str, list[Any]], sizes_R: Numbers, slots_T: Numbers) -> Words:
    words_R = _sizes(columns["word_token"])
    row_W = np.repeat(np.arange(len(words_R)), words_R)
    token_W = slots_T[(np.cumsum(sizes_R) - sizes_R)[row_W] + _joined(columns["word_token"])]
    places = (token_W, row_W, _joined(columns["word_start"]), _joined(columns["word_end"]))
    return Words(*map(torch.from_numpy, places))


def _sizes(column: Sequence[Sequence[int]]) -> Numbers:
    return np.fromiter(map(len, column), dtype=np.int64, count=len(column))


def _joined(column: Iterable[Iterable[int]]) -> Numbers:
    return np.fromiter(chain.from_iterable(column), dtype=np.int64)


def _spread(values: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    grid = np.zeros(size, dtype=values.dtype)
    grid[slots] = values
    return grid
