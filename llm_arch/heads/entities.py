"""Metrics of whole entities from counts alone: exact for any batch size, and summed over ranks without a row twice.

Legend: W words, L labels (entity types).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from llm_arch.tags import OUTSIDE, entities, scheme_of, split_tag, strict_entities


class EntityMetrics(Metric):
    """Precision, recall and F1 of entities, right only if start, end and label all are.

    `precision`, `recall` and `f1` count the entities that are spelled properly (seqeval's strict mode with IOB2 or
    IOBES; its default for io tags); an ill-spelled one is none. `macro_f1` is the mean F1 of the labels that occur in
    the truth or in the predictions, counted so. `f1_default` counts repaired entities, as conlleval and seqeval's
    default do. `accuracy` is the share of words whose tag is right. Where nothing is counted, a share is 0.

    Args:
        names: the tags in the order of the classes.
    """

    full_state_update = False
    counts: Tensor
    words: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.scheme = scheme_of(names)
        self.labels = sorted({split_tag(name)[1] for name in names} - {""})
        # (2, 3, L): strict and default; right, predicted and true entities.
        self.add_state("counts", torch.zeros(2, 3, len(self.labels), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("words", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")  # right, all

    def update(self, predicted: Tensor, truth: Tensor, row: Tensor) -> None:
        """Count one batch.

        Args:
            predicted: (W,) classes.
            truth: (W,) classes.
            row: (W,) the row of each word; the words of a row stand together, in order.
        """
        rows = row.tolist()
        both = self._tags(predicted.tolist(), rows), self._tags(truth.tolist(), rows)
        table = []
        for read in (strict_entities, entities):
            found, true = (set(read(tags, self.scheme)) for tags in both)
            for some in (found & true, found, true):
                number = Counter(entity.label for entity in some)
                table.append([number[label] for label in self.labels])
        self.counts += torch.tensor(table, dtype=torch.long, device=self.counts.device).view_as(self.counts)
        self.words += torch.stack([(predicted == truth).sum(), torch.as_tensor(len(truth), device=truth.device)])

    def _tags(self, classes: list[int], rows: list[int]) -> list[str]:
        """The tags of all rows as one long row, with O between them, where no entity can be."""
        tags, before = [], -1
        for i, row in zip(classes, rows, strict=True):
            if row != before:
                tags.append(OUTSIDE)
                before = row
            tags.append(self.names[i])
        return tags

    def compute(self) -> dict[str, Tensor]:
        """`precision`, `recall`, `f1`, `f1_default`, `macro_f1` and `accuracy`."""
        strict_3L, default_3L = self.counts.double()
        right, predicted, true = strict_3L.sum(1)
        default_right, default_predicted, default_true = default_3L.sum(1)
        seen_L = strict_3L[1] + strict_3L[2] > 0
        found = {
            "precision": right / predicted.clamp(min=1),
            "recall": right / true.clamp(min=1),
            "f1": 2 * right / (predicted + true).clamp(min=1),
            "f1_default": 2 * default_right / (default_predicted + default_true).clamp(min=1),
            "macro_f1": _f1(strict_3L).sum() / seen_L.sum().clamp(min=1),
            "accuracy": self.words[0] / self.words[1].clamp(min=1),
        }
        return {name: value.float() for name, value in found.items()}

    def per_label(self) -> dict[str, dict[str, Any]]:
        """Strict precision, recall, F1 and support (true entities) of every label, by name."""
        strict_3L = self.counts[0].double()
        right_L, predicted_L, true_L = strict_3L
        columns = {
            "precision": right_L / predicted_L.clamp(min=1),
            "recall": right_L / true_L.clamp(min=1),
            "f1": _f1(strict_3L),
        }
        return {
            label: {k: float(v[i]) for k, v in columns.items()} | {"support": int(true_L[i])}
            for i, label in enumerate(self.labels)
        }


def _f1(counts_3L: Tensor) -> Tensor:
    right_L, predicted_L, true_L = counts_3L
    return 2 * right_L / (predicted_L + true_L).clamp(min=1)
