"""Classification metrics from counts alone: exact for any batch size, and summed over ranks without a row twice.

Legend: B sequences, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from llm_arch.types import LabelSpace


class ClassificationMetrics(Metric):
    """Accuracy, macro-F1 and Matthews' correlation, with precision, recall and F1 of every label.

    Single-label: accuracy is the share of rows whose label is right. Multi-label: of rows whose whole set is right.
    Macro-F1 is the mean F1 of the labels that occur in the truth or in the predictions (as scikit-learn has it); a
    label never predicted or never true counts as F1 0. MCC is the multi-class R_K (Gorodkin 2004); with several labels
    a row, the coefficient of all (row, label) decisions taken together.

    Args:
        label_space: the labels in the order of the classes.
    """

    full_state_update = False
    confusion: Tensor
    rows: Tensor

    def __init__(self, label_space: LabelSpace) -> None:
        super().__init__()
        self.label_space = label_space
        classes = len(label_space)
        # Single-label: (C, C), truth by prediction. Multi-label: (C, 2, 2), a table a label.
        shape = (classes, 2, 2) if label_space.multi else (classes, classes)
        self.add_state("confusion", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Count one batch.

        Args:
            predicted: (B,) classes, or (B, C) zeros and ones for several labels a row.
            truth: of the same shape.
        """
        predicted, truth = predicted.long(), truth.long()
        if self.label_space.multi:
            right = (predicted == truth).all(1)
            flat = torch.arange(len(self.label_space), device=truth.device) * 4 + truth * 2 + predicted
        else:
            right = predicted == truth
            flat = truth * len(self.label_space) + predicted
        self.confusion += torch.bincount(flat.flatten(), minlength=self.confusion.numel()).view_as(self.confusion)
        self.rows += torch.stack([right.sum(), torch.as_tensor(len(truth), device=truth.device)])

    def _per_label(self) -> tuple[Tensor, Tensor, Tensor]:
        """(C,) true positives, rows predicted so, rows that are so."""
        table = self.confusion.double()
        if self.label_space.multi:
            return table[:, 1, 1], table[:, :, 1].sum(1), table[:, 1, :].sum(1)
        return table.diagonal(), table.sum(0), table.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, `macro_f1` and `mcc`."""
        hit_C, predicted_C, true_C = self._per_label()
        seen_C = predicted_C + true_C > 0
        f1_C = 2 * hit_C / (predicted_C + true_C).clamp(min=1)
        return {
            "accuracy": (self.rows[0] / self.rows[1].clamp(min=1)).float(),
            "macro_f1": (f1_C.sum() / seen_C.sum().clamp(min=1)).float(),
            "mcc": self._mcc().float(),
        }

    def _mcc(self) -> Tensor:
        table = self.confusion.double()
        if self.label_space.multi:
            table = table.sum(0)
        true_C, predicted_C, total, hits = table.sum(1), table.sum(0), table.sum(), table.diagonal().sum()
        spread = (total**2 - (predicted_C**2).sum()) * (total**2 - (true_C**2).sum())
        return (hits * total - (true_C * predicted_C).sum()) / spread.sqrt() if spread > 0 else total * 0

    def per_label(self) -> dict[str, dict[str, Any]]:
        """Precision, recall, F1 and support of every label, by name."""
        hit_C, predicted_C, true_C = self._per_label()
        columns = {
            "precision": hit_C / predicted_C.clamp(min=1),
            "recall": hit_C / true_C.clamp(min=1),
            "f1": 2 * hit_C / (predicted_C + true_C).clamp(min=1),
        }
        return {
            name: {k: float(v[i]) for k, v in columns.items()} | {"support": int(true_C[i])}
            for i, name in enumerate(self.label_space.names)
        }
