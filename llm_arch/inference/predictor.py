"""Predictions for texts, rows and whole splits, always in input order."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from llm_arch.data.batching import Cut, evaluation_plan
from llm_arch.data.module import DataModule
from llm_arch.data.reading import encoding_faults, missing
from llm_arch.inference.directory import Model, load
from llm_arch.precision import use_fast_fp32
from llm_arch.task import Task
from llm_arch.types import Prediction, UserError

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_CHUNK = 1024


class Predictor:
    """Predicts with a model directory.

    Args:
        model: a model directory, or a loaded `Model`.
        device: where to run; None for a GPU if there is one.
        batch_tokens: tokens a batch at most.
        trust: modules outside this package that the model may use.
        precision: what products are computed in: `32-true`, or `bf16-mixed` or `16-mixed`, which are faster where
            the device has them, and round scores.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        device: str | None = None,
        batch_tokens: int = 4096,
        trust: tuple[str, ...] = (),
        precision: str = "32-true",
    ) -> None:
        if batch_tokens < 1:
            raise UserError(f"batch_tokens must be at least 1, got {batch_tokens}")
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model = model if isinstance(model, Model) else load(model, trust=trust)
        self.half = PRECISIONS[precision]
        if self.half is not None and hasattr(self.model.backbone, "runtime"):
            raise UserError(f"{self.model.directory} is exported, and computes in the precision it was exported in")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cpu":
            use_fast_fp32()
        self.batch_tokens = batch_tokens
        self.truncated = 0
        self.model.backbone.to(self.device)
        self.model.head.to(self.device)

    def __call__(self, texts: Iterable[str] | str) -> list[Prediction]:
        """Predictions of one text or several.

        Args:
            texts: the texts; a single one is taken as a list of one.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        column = next(iter(self.model.data.columns))
        return list(self.stream({column: text} for text in texts))

    def stream(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Prediction]:
        """Predictions of rows, one after another in input order; memory does not grow with their number.

        Args:
            rows: mappings with the columns the model was trained on; labels are not needed.

        Raises:
            UserError: for a row that can't be used, naming its number.
        """
        rows = iter(rows)
        start = 0
        while chunk := list(islice(rows, _CHUNK)):
            yield from self._chunk(chunk, start)
            start += len(chunk)

    def encoded(self, rows: Sequence[Mapping[str, Any]], start: int = 0) -> dict[str, list[Any]]:
        """Rows as columns of tokens, and the model in eval mode.

        Args:
            rows: mappings with the columns that the model was trained on.
            start: number of the first row, from 0.

        Raises:
            UserError: for a row that can't be used, naming its number.
        """
        data = self.model.data
        for part in (self.model.backbone, self.model.head):
            if part.training:  # it was trained on
                part.eval()
        for number, row in enumerate(rows, start=start + 1):
            absent = missing([name for name, always in data.columns_of(row).items() if always], row)
            if absent:
                raise UserError(f"row {number} {absent}; it has: {', '.join(map(str, row))}")
            fault = data.fault(row, False)
            if fault:
                raise UserError(f"row {number}: {fault}")
        columns, counts = data.encode(rows)
        for i, fault in encoding_faults(columns).items():
            raise UserError(f"row {start + i + 1}: {fault}")
        self.truncated += counts.get("truncated", 0)
        return columns

    def _chunk(self, rows: list[Mapping[str, Any]], start: int) -> list[Prediction]:
        data, columns = self.model.data, self.encoded(rows, start)
        if len(rows) == 1:  # a request: needs no plan
            found = self._answers(columns | {"index": [start]})
            return [data.complete(p, data.texts(rows[0])) for p in found]
        lengths = np.array([len(ids) for ids in columns["input_ids"]])
        plan = evaluation_plan(Cut(lengths, None, self.batch_tokens), 1)
        found = []
        for rows_of_batch in plan:
            chosen: dict[str, Any] = {name: [values[i] for i in rows_of_batch] for name, values in columns.items()}
            found += self._answers(chosen | {"index": [start + int(i) for i in rows_of_batch]})
        return [data.complete(p, data.texts(rows[p.index - start])) for p in sorted(found, key=lambda p: p.index)]

    def _answers(self, columns: dict[str, Any]) -> list[Prediction]:
        batch = self.model.data.collate(columns | {"epoch": 0}, labelled=False).to(self.device)
        with torch.inference_mode(), self._precision():
            logits = self.model.head(self.model.backbone(batch), batch)
            return self.model.head.decode(logits, batch)

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.half is None else torch.autocast(self.device.type, self.half)


def predict(trainer: L.Trainer, task: Task, data: DataModule) -> list[Prediction]:
    """Predictions of the data module's `predict` rows with a Trainer, in input order, on every rank all of them.

    Args:
        trainer: any trainer; with several ranks each predicts its share.
        task: the task.
        data: a data module with `predict` rows.
    """
    with warnings.catch_warnings():
        # Lightning can't see that the plan holds every row.
        warnings.filterwarnings("ignore", message=".*custom batch sampler `PlannedBatches` for prediction.*")
        batches = trainer.predict(task, datamodule=data) or []
    found = [p for batch in batches for p in batch]
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, found)
        found = list(chain.from_iterable(shares))
    found.sort(key=lambda p: p.index)
    if "text" not in data.schema:
        return found
    stored = (data.split("predict").rows[p.index] for p in found)
    return [data.complete(p, (row["text"], row.get("text_pair"))) for p, row in zip(found, stored, strict=True)]
