"""Texts, or pairs of texts, with one label or a set of labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from llm_arch.data.cells import text_fault
from llm_arch.data.labels import in_order, label_fault, unknown_label
from llm_arch.data.module import DataModule
from llm_arch.types import LabelSpace, Prediction, UserError


class TextClassificationData(DataModule):
    """Rows with a text (or two) and a label.

    A label that is a list, or a cell with `label_delimiter` between labels, makes the task multi-label.

    Args:
        train: see `DataModule`, as for all arguments up to `cache_dir`.
        validation: see `DataModule`.
        test: see `DataModule`.
        text_column: column of the text.
        text_pair_column: column of the second text, for pairs.
        label_column: column of the label or labels.
        label_delimiter: what separates labels in one cell, such as `|`; None for one label a cell.
        labels: the label names in the order of the logits; None discovers them in the training rows.
        **options: the options of `DataModule`.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        label_delimiter: str | None = None,
        labels: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        self.text_column = text_column
        self.text_pair_column = text_pair_column
        self.label_column = label_column
        self.label_delimiter = label_delimiter
        self.given_labels = labels
        if labels:
            self.labels_from = "in data.labels"

    @property
    def columns(self) -> dict[str, bool]:
        """Text columns always, the label column where there is something to learn or measure."""
        pair = {self.text_pair_column: True} if self.text_pair_column else {}
        return {self.text_column: True, **pair, self.label_column: False}

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The texts and labels as they were."""
        return {"text": pa.string(), "text_pair": pa.string(), "labels": pa.list_(pa.string())}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells."""
        if fault := text_fault(values, (self.text_column, self.text_pair_column)):
            return fault
        if labelled:
            label = values[self.label_column]
            for one in label if isinstance(label, list) else [label]:
                if fault := label_fault(one, self.label_column):
                    return fault
        return None

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text, and the second one of a pair."""
        return values[self.text_column], values[self.text_pair_column] if self.text_pair_column else None

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """Texts and label names."""
        text, pair = self.texts(values)
        return {"text": text, "text_pair": pair, "labels": self._labels(values) if labelled else []}

    def _labels(self, values: Mapping[str, Any]) -> list[str]:
        cell = values[self.label_column]
        if isinstance(cell, list):
            return list(dict.fromkeys(str(label).strip() for label in cell))
        if self.label_delimiter is not None:
            parts = (part.strip() for part in str(cell).split(self.label_delimiter))
            return list(dict.fromkeys(filter(None, parts)))
        return [str(cell).strip()]

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The columns that prediction needs, and what was predicted."""
        name = "labels" if self.label_space.multi else "label"
        return self.asked_of(values) | {self.label_column: getattr(prediction, name)}

    def labels_of(self, stored: Mapping[str, Any]) -> list[str]:
        """The label names of a row; an empty set counts under its own name, so that it is not lost."""
        return list(stored["labels"]) if len(stored["labels"]) == 1 else [*stored["labels"], _SEVERAL]

    @cached_property
    def label_space(self) -> LabelSpace:
        """Discovered in the training rows (sorted, numbers by value) or given."""
        if "train" not in self.sources:
            if self.given_labels is None:
                raise UserError("without training rows the labels must be given with data.labels")
            return LabelSpace(tuple(self.given_labels), None, self.label_delimiter is not None)
        counts = {k: n for k, (n, _) in self.load_source(self.sources["train"])[1]["labels"].items()}
        multi = counts.pop(_SEVERAL, 0) > 0 or self.label_delimiter is not None
        names = self.given_labels or in_order(counts)
        return LabelSpace(tuple(names), tuple(counts.get(name, 0) for name in names), multi)

    def check(self, name: str, facts: dict[str, Any]) -> None:
        """Every label of a split must be known, and sets of labels must be expected."""
        space = self.label_space
        for label, (count, line) in facts["labels"].items():
            if label == _SEVERAL and not space.multi:
                raise UserError(f"{name}, line {line}: carries several labels (or none), the training rows one each")
            if label != _SEVERAL and label not in space.names:
                raise unknown_label(name, line, label, count, space, self.labels_from)

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """`label`: (B,) classes, or (B, C) zeros and ones for sets of labels."""
        place = self._place
        if not self.label_space.multi:
            return {"label": torch.tensor([place[labels[0]] for labels in columns["labels"]])}
        rows = torch.zeros(len(columns["labels"]), len(place))
        for i, labels in enumerate(columns["labels"]):
            rows[i, [place[label] for label in labels]] = 1
        return {"label": rows}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.label_space.names)}

    def record(self) -> dict[str, Any]:
        """Columns and limits that reading new rows needs."""
        return super().record() | {
            "text_column": self.text_column,
            "text_pair_column": self.text_pair_column,
            "label_column": self.label_column,
            "label_delimiter": self.label_delimiter,
        }


# Counts rows that carry several labels or none; no label can be named so, since label names are stripped.
_SEVERAL = " several"
