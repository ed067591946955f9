"""Rows on their way to what is explained of them: in batches of like length, and which number each is asked about.

Legend: R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from llm_arch.data.batching import Cut, evaluation_plan
from llm_arch.heads.language import VocabularyHead
from llm_arch.inference.directory import Model
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret.explained_rows import ExplainedRows
from llm_arch.types import Batch, Prediction, Reading, Target, UserError

Row = Mapping[str, Any]
Wanted = str | Sequence[str | None] | None  # what to explain: of all rows, or of each


class Numbered(Protocol):
    """What is said of a row."""

    @property
    def index(self) -> int:
        """Number of the row in its input, from 0."""


Said = TypeVar("Said", bound=Numbered)


def rows_of(model: Model, rows: Iterable[Row | str] | Row | str) -> Iterator[Row]:
    """Texts or rows as rows; a single one is taken as one of a list."""
    column = next(iter(model.data.columns))
    several = [rows] if isinstance(rows, str | Mapping) else rows
    return ({column: row} if isinstance(row, str) else row for row in several)


def in_batches(
    predictor: Predictor, rows: Iterable[Row], say: Callable[[Batch, list[Row]], Iterable[Said]], at_once: int
) -> Iterator[Said]:
    """What is said of rows, one after another in input order; memory does not grow with their number.

    Args:
        predictor: how rows are read.
        rows: mappings with the columns that the model was trained on.
        say: says something of each row of a batch.
        at_once: how many rows are read before anything is said of them.

    Raises:
        UserError: for a row that can't be used, naming its number.
    """
    rows, data, start = iter(rows), predictor.model.data, 0
    while chunk := list(islice(rows, at_once)):
        columns = predictor.encoded(chunk, start)
        lengths = np.array([len(ids) for ids in columns["input_ids"]])
        found: dict[int, Said] = {}
        for numbers in evaluation_plan(Cut(lengths, None, predictor.batch_tokens), 1):
            chosen: dict[str, Any] = {name: [values[i] for i in numbers] for name, values in columns.items()}
            chosen |= {"index": [start + int(i) for i in numbers], "epoch": 0}
            batch = data.collate(chosen, labelled=False).to(predictor.device)
            for one in say(batch, [chunk[i] for i in numbers]):
                found[one.index] = one
        yield from (found[index] for index in sorted(found))
        start += len(chunk)


@torch.no_grad()
def asked(
    model: Model, batch: Batch, rows: ExplainedRows, values: Sequence[Row], target: Wanted, against: str | None
) -> tuple[list[Target], Tensor]:
    """Which number each row is asked about, and (R,) what it is.

    Args:
        model: in eval mode.
        batch: the rows, as `head.asking` gives it.
        rows: the same.
        values: the same, as they were given.
        target: what to explain, in the terms of the head's `target`, of all rows or of each by its number in the input;
            None for what the model predicts.
        against: what else could have been; the difference is explained.

    Raises:
        UserError: a row has no such target, naming its number.
    """
    head = model.head
    logits = head(model.backbone(batch), batch)
    predictions = _complete(model, head.decode(logits, batch), values)
    both = zip(predictions, rows.readings, strict=True)
    targets = [_target(model, said, reading, _of(target, said.index), against) for said, reading in both]
    return targets, head.explained(logits, batch, targets)


def _of(target: Wanted, row: int) -> str | None:
    return target if target is None or isinstance(target, str) else target[row]


def _complete(model: Model, found: list[Prediction], values: Sequence[Row]) -> list[Prediction]:
    data = model.data
    if isinstance(model.head, VocabularyHead):  # what it says has its name from the row's `Reading`
        return found
    return [data.complete(one, data.texts(row)) for one, row in zip(found, values, strict=True)]


def _target(model: Model, prediction: Prediction, reading: Reading, wanted: str | None, against: str | None) -> Target:
    head = model.head
    try:
        target = said = head.target(prediction, reading, None)
        if wanted is not None:
            target = head.target(prediction, reading, wanted)
        if against is not None:
            target = head.contrast(target, head.target(prediction, reading, against))
        return replace(target, predicted=said.name)
    except UserError as error:
        raise UserError(f"row {prediction.index + 1}: {error}") from error
