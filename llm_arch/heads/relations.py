"""Relations among labels and how they are scored, from counts alone: exact for any batch size and number of ranks.

Legend: B sequences, C classes, N relations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_DIRECTION = re.compile(r"\((e[12]),(e[12])\)$")


def relation_of(label: str) -> str:
    """The relation that a label names, without its direction: Cause-Effect for Cause-Effect(e2,e1)."""
    return _DIRECTION.sub("", label)


def directed(label: str) -> bool:
    """Whether a label ends in a direction: (e1,e2) or (e2,e1)."""
    return _DIRECTION.search(label) is not None


def reversed_direction(label: str) -> bool:
    """Whether a label's relation goes from the tail to the head: Cause-Effect(e2,e1)."""
    return label.endswith("(e2,e1)")


class RelationMetrics(Metric):
    """The official scores of SemEval-2010 Task 8 (Hendrickx et al. 2010), for any labels.

    Labels that differ in direction alone are one relation, of which a row counts as right only if its direction is
    right too. Precision is over the rows that are predicted as the relation, recall over those that are of it, each in
    either direction. `macro_f1` is the mean F1 of the relations that occur in the truth, `micro_f1` takes their rows
    together, both without the negative label. `accuracy` is the share of rows whose label is right, the negative one
    counted. Where nothing is counted, a share is 0.

    Args:
        names: the labels in the order of the classes.
        negative: the label of entities that have no relation, or None.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, names: Sequence[str], negative: str | None = None) -> None:
        super().__init__()
        relations = [relation_of(name) for name in names]
        self.relations = list(dict.fromkeys(relations))
        self.negative = None if negative is None else relation_of(negative)
        self.relation_C = torch.tensor([self.relations.index(relation) for relation in relations])
        self.add_state("confusion", torch.zeros(len(names), len(names), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Count one batch.

        Args:
            predicted: (B,) classes.
            truth: (B,) classes.
        """
        classes = len(self.confusion)
        self.confusion += torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)

    def _per_relation(self) -> Tensor:
        """(3, N): right, predicted and true rows of each relation."""
        table_CC = self.confusion.double()
        counts_3C = torch.stack([table_CC.diagonal(), table_CC.sum(0), table_CC.sum(1)])
        relation_C = self.relation_C.to(counts_3C.device)
        return counts_3C.new_zeros(3, len(self.relations)).index_add(1, relation_C, counts_3C)

    def compute(self) -> dict[str, Tensor]:
        """`macro_f1`, `micro_f1` and `accuracy`."""
        counts_3N = self._per_relation()
        counted_N = counts_3N[2] > 0
        if self.negative in self.relations:
            counted_N[self.relations.index(self.negative)] = False
        counted = counts_3N[:, counted_N]
        table = self.confusion.double()
        found = {
            "macro_f1": _f1(counted).sum() / max(1, counted.shape[1]),
            "micro_f1": _f1(counted.sum(1, keepdim=True))[0],
            "accuracy": table.diagonal().sum() / table.sum().clamp(min=1),
        }
        return {name: value.float() for name, value in found.items()}

    def per_label(self) -> dict[str, dict[str, Any]]:
        """Precision, recall, F1 and support (true rows) of every relation, by name."""
        counts_3N = self._per_relation()
        right_N, predicted_N, true_N = counts_3N
        columns = {
            "precision": right_N / predicted_N.clamp(min=1),
            "recall": right_N / true_N.clamp(min=1),
            "f1": _f1(counts_3N),
        }
        return {
            name: {k: float(v[i]) for k, v in columns.items()} | {"support": int(true_N[i])}
            for i, name in enumerate(self.relations)
        }


def _f1(counts_3N: Tensor) -> Tensor:
    right_N, predicted_N, true_N = counts_3N
    return 2 * right_N / (predicted_N + true_N).clamp(min=1)
