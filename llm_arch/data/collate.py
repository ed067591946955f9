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

from llm_arch.types import Batch, OneSequence, Words

Numbers = NDArray[np.int64]
_MORE = {"windows", "word_token"}  # columns of rows that are more than one sequence of tokens


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
    if len(rows) == 1 and layout == "flat" and not (labels or texts or columns.keys() & _MORE):
        return OneSequence.of(rows[0], columns["token_type_ids"][0], columns["index"][0])
    sizes_R = _sizes(rows)
    parts = [cut or (size,) for cut, size in zip(columns.get("windows") or [None] * len(rows), sizes_R, strict=True)]
    flat = {"input_ids": rows}
    if columns["token_type_ids"][0] is not None:
        flat["token_type_ids"] = columns["token_type_ids"]
    placed, slots_T = _placed({name: _joined(column) for name, column in flat.items()}, _joined(parts), layout)
    return Batch(
        index=torch.from_numpy(np.repeat(np.asarray(columns["index"]), _sizes(parts))),
        labels=labels or {},
        words=_words(columns, sizes_R, slots_T) if "word_token" in columns else None,
        rows=len(rows),
        texts=texts or {},
        **placed,
    )


def flat_batch(
    input_ids: Numbers,
    token_type_ids: Numbers | None,
    lengths: Numbers,
    index: Numbers,
    layout: str = "flat",
    labels: Mapping[str, NDArray[Any]] | None = None,
) -> Batch:
    """Rows that are arrays already → a batch.

    Args:
        input_ids: (T,) token ids, row after row.
        token_type_ids: (T,) token types, or None.
        lengths: (R,) tokens of each row.
        index: (R,) row numbers.
        layout: flat or padded.
        labels: the labels as the head wants them; of them `positions` are places among the T tokens, and `targets`
            without `positions` are about all T, whatever the layout makes of them.
    """
    values = {"input_ids": input_ids} | ({} if token_type_ids is None else {"token_type_ids": token_type_ids})
    placed, slots_T = _placed(values, lengths, layout)
    named = dict(labels or {})
    if layout == "padded" and "targets" in named:
        named["positions"] = slots_T[named["positions"]] if "positions" in named else slots_T
    tensors = {name: torch.from_numpy(value) for name, value in named.items()}
    return Batch(index=torch.from_numpy(np.asarray(index)), labels=tensors, rows=len(lengths), **placed)


def _placed(values: dict[str, Numbers], lengths_B: Numbers, layout: str) -> tuple[dict[str, Any], Numbers]:
    """The fields of a batch that tell its layout, with those of its tokens, and (T,) where each token lies in it."""
    tokens = int(lengths_B.sum())
    starts_B = np.cumsum(lengths_B) - lengths_B
    segments_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
    positions_T = np.arange(tokens) - np.repeat(starts_B, lengths_B)
    valid_T, slots_T = None, np.arange(tokens)
    if layout == "padded":
        longest, count = int(lengths_B.max()), len(lengths_B)
        slots_T = segments_T * longest + positions_T
        values = {k: _spread(v, slots_T, count * longest) for k, v in values.items()}
        valid_T = torch.from_numpy(_spread(np.ones(tokens, dtype=bool), slots_T, count * longest))
        starts_B = np.arange(count) * longest
        segments_T, positions_T = np.repeat(np.arange(count), longest), np.tile(np.arange(longest), count)
    layout_fields = {"position_ids": positions_T, "segments": segments_T, "starts": starts_B, "lengths": lengths_B}
    tensors = {name: torch.from_numpy(value) for name, value in (layout_fields | values).items()}
    return tensors | {"valid": valid_T}, slots_T


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
