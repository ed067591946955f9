"""Texts, or pairs of texts, with a number."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llm_arch.data.cells import number_fault, number_of, text_fault
from llm_arch.data.module import DataModule
from llm_arch.types import LabelSpace, Prediction, UserError


class RegressionData(DataModule):
    """Rows with a text (or two) and a number, such as a rating or how similar two sentences are.

    Args:
        train: see `DataModule`, as for all arguments up to `cache_dir`.
        validation: see `DataModule`.
        test: see `DataModule`.
        text_column: column of the text.
        text_pair_column: column of the second text, for pairs.
        target_column: column of the number.
        **options: the options of `DataModule`.
    """

    column_options = "--data.text_column, --data.text_pair_column, --data.target_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        text_column: str = "text",
        text_pair_column: str | None = None,
        target_column: str = "target",
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        self.text_column = text_column
        self.text_pair_column = text_pair_column
        self.target_column = target_column

    @property
    def columns(self) -> dict[str, bool]:
        """Text columns always, the number where there is something to learn or measure."""
        pair = {self.text_pair_column: True} if self.text_pair_column else {}
        return {self.text_column: True, **pair, self.target_column: False}

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The texts and the number."""
        return {"text": pa.string(), "text_pair": pa.string(), "target": pa.float64()}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells, and numbers that are none or not finite."""
        fault = text_fault(values, (self.text_column, self.text_pair_column))
        return fault or (number_fault(values, self.target_column) if labelled else None)

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text, and the second one of a pair."""
        return values[self.text_column], values[self.text_pair_column] if self.text_pair_column else None

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """Texts and number."""
        text, pair = self.texts(values)
        return {"text": text, "text_pair": pair, "target": number_of(values[self.target_column]) if labelled else None}

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The columns that prediction needs, and what was predicted."""
        return self.asked_of(values) | {self.target_column: prediction.value}  # type: ignore[attr-defined]

    @cached_property
    def label_space(self) -> LabelSpace:
        """No names, but mean and standard deviation of the training rows' numbers."""
        if "train" not in self.sources:
            return LabelSpace(())
        targets = np.array(self.split("train").column("target"))
        if np.ptp(targets.astype(np.float32)) == 0:
            raise UserError(
                f"{self.sources['train']}: {self.target_column!r} is {targets[0]:g} in all training rows, so there is "
                "nothing to learn; name another column with --data.target_column"
            )
        return LabelSpace((), moments=(float(targets.mean()), float(targets.std())))

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """`target`: (R,) numbers."""
        return {"target": torch.tensor(columns["target"], dtype=torch.float)}

    def record(self) -> dict[str, Any]:
        """Columns and limits that reading new rows needs."""
        return super().record() | {
            "text_column": self.text_column,
            "text_pair_column": self.text_pair_column,
            "target_column": self.target_column,
        }
