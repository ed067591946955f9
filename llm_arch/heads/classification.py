"""One label, a set of labels, or yes/no for each sequence.

Legend: T tokens, B sequences, D hidden size, C classes, K logits a sequence (1 for binary, else C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import Metric

from llm_arch.heads.labels import LabelPrediction as LabelPrediction  # users find it beside the other
from llm_arch.heads.labels import label_target
from llm_arch.heads.metrics import ClassificationMetrics
from llm_arch.heads.weights import ClassWeights, weights_of
from llm_arch.types import (
    Backbone,
    Batch,
    Head,
    Hidden,
    LabelSpace,
    Loss,
    Pooling,
    Prediction,
    Reading,
    Target,
    Taught,
    UserError,
    divergence,
)
from llm_arch.types.explaining import weighted_sums


@dataclass(frozen=True)
class LabelSetPrediction(Prediction):
    """All labels above the threshold, and every label's probability.

    Attributes:
        labels: the labels whose probability reaches the threshold; may be empty.
        scores: probability of every label.
    """

    labels: list[str]
    scores: dict[str, float]


class SequenceClassification(Head):
    """Linear classifier on one vector a sequence.

    Args:
        hidden_size: D.
        label_space: the labels; `multi` decides between one label (softmax) and a set of labels (sigmoids).
        binary: two labels as one logit with binary cross-entropy; the second label is the positive one.
        pooling: how a sequence becomes one vector; None takes the backbone's.
        dropout: probability on the pooled vector.
        class_weights: `balanced` weights each row by N / (C · count of its label); a mapping weights labels by name.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        threshold: probability from which a label counts as present (sets of labels, and binary).
    """

    major = "accuracy"
    mode = "max"

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        binary: bool = False,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if len(label_space) < 2 and not label_space.multi:
            raise UserError(f"classification needs at least two labels, the data has {list(label_space.names)}")
        if binary and (len(label_space) != 2 or label_space.multi):
            raise UserError(f"binary: true needs exactly two labels, the data has {len(label_space)}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if not 0 < threshold < 1:
            raise UserError(f"threshold must be in (0, 1), got {threshold}")
        self.label_space = label_space
        self.binary = binary
        self.pooling = pooling
        self.label_smoothing = label_smoothing
        self.threshold = threshold
        if label_space.multi:
            self.major = "macro_f1"
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden_size, 1 if binary else len(label_space))
        nn.init.normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)
        self.weights_C: Tensor | None
        self.register_buffer("weights_C", weights_of(class_weights, label_space), persistent=False)

    def bind(self, backbone: Backbone) -> None:
        """Take the backbone's pooling unless one was given."""
        self.pooling = self.pooling or backbone.pooling

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(B, K) logits."""
        pooled_BD = batch.pool(hidden.last_TD, self.pooling or "first")
        logits: Tensor = self.classify(self.dropout(pooled_BD))
        return logits

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Cross-entropy, or binary cross-entropy averaged over the labels of a row, summed over rows."""
        logits_BK = self(hidden, batch).float()
        truth = batch.labels["label"]
        if not (self.label_space.multi or self.binary):
            weights_C = self.weights_C
            sum_ = cross_entropy(
                logits_BK, truth, weight=weights_C, label_smoothing=self.label_smoothing, reduction="sum"
            )
            return Loss(sum_, float(len(truth)) if weights_C is None else weights_C[truth].sum())
        target_BK = truth.to(logits_BK.dtype).view_as(logits_BK)
        smooth_BK = target_BK * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss_BK = binary_cross_entropy_with_logits(logits_BK, smooth_BK, reduction="none")
        if self.weights_C is None:
            return Loss(loss_BK.mean(1).sum(), float(len(truth)))
        if self.binary:
            weights_BK = self.weights_C[truth.long()].view_as(loss_BK)
            return Loss((loss_BK * weights_BK).sum(), weights_BK.sum())
        # Several labels: a weight strengthens a label's presence, so that rare labels are not drowned by their absence.
        weights_BK = torch.where(target_BK > 0, self.weights_C, 1.0)
        return Loss((loss_BK * weights_BK).mean(1).sum(), float(len(truth)))

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """As all heads over classes; for sigmoids the divergence of each, averaged over the labels of a row.

        Of two labels one head may have one logit, and the other two.
        """
        logits_BK, wanted_BK = self(hidden, batch).float(), taught.logits.float()
        if not self.label_space.multi and (columns := {logits_BK.shape[1], wanted_BK.shape[1]}) != {1}:
            if 1 in columns:
                logits_BK, wanted_BK = _as_two(logits_BK), _as_two(wanted_BK)
            return Loss(divergence(logits_BK, wanted_BK, temperature), float(len(logits_BK)))
        logits_BK, wanted_BK = logits_BK / temperature, wanted_BK / temperature
        chance_BK = wanted_BK.sigmoid()
        ours_BK, least_BK = (
            binary_cross_entropy_with_logits(x, chance_BK, reduction="none") for x in (logits_BK, wanted_BK)
        )
        return Loss((ours_BK - least_BK).mean(1).sum() * temperature**2, float(len(logits_BK)))

    def metrics(self) -> Metric:
        """Accuracy, macro-F1 and MCC."""
        return ClassificationMetrics(self.label_space)

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Predicted and true classes."""
        return self.classes(logits), batch.labels["label"]

    def classes(self, logits_BK: Tensor) -> Tensor:
        """(B,) classes, or (B, C) zeros and ones for sets of labels."""
        if self.label_space.multi:
            return (logits_BK.float().sigmoid() >= self.threshold).long()
        if self.binary:
            return (logits_BK[:, 0].float().sigmoid() >= self.threshold).long()
        return logits_BK.argmax(1)

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The label or labels of each sequence, with probabilities."""
        logits_BK = logits.float()
        if self.binary:
            yes_B1 = logits_BK.sigmoid()
            scores_BC = torch.cat([1 - yes_B1, yes_B1], 1)
        else:
            scores_BC = logits_BK.sigmoid() if self.label_space.multi else logits_BK.softmax(1)
        request = len(logits_BK) == 1 and not (self.label_space.multi or self.binary)
        # Of one row Python finds the largest sooner than a tensor does.
        chosen = [_largest(logits_BK[0].tolist())] if request else self.classes(logits_BK).tolist()
        found: list[Prediction] = []
        for index, row, choice in zip(batch.index.tolist(), scores_BC.tolist(), chosen, strict=True):
            scores = dict(zip(self.label_space.names, row, strict=True))
            if self.label_space.multi:
                labels = [name for name, here in zip(self.label_space.names, choice, strict=True) if here]
                found.append(LabelSetPrediction(index, labels, scores))
            else:
                label = self.label_space.names[choice]
                found.append(LabelPrediction(index, label, scores[label], scores))
        return found

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The logit of a label: the predicted one, of a set the most probable; of two as one logit, its log-odds."""
        if wanted is None:
            scores: dict[str, float] = prediction.scores  # type: ignore[attr-defined]
            chosen = getattr(prediction, "label", None)
            wanted = max(scores, key=scores.__getitem__) if chosen is None else chosen
        found = label_target(self.label_space, wanted)
        if self.binary:
            return replace(found, cells=((0, 0, 1.0 if self.label_space.index(wanted) else -1.0),))
        return found

    def contrast(self, target: Target, against: Target) -> Target:
        """The difference of their logits; of two labels as one logit that is the logit itself."""
        found = super().contrast(target, against)
        return replace(found, cells=target.cells) if self.binary else found

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) that of the label; of one of two as one logit also where it is set against the other."""
        if self.binary:
            return (self.explained(logits, batch, targets)).sigmoid()
        scores_BC = logits.float().sigmoid() if self.label_space.multi else logits.float().softmax(1)
        return weighted_sums(scores_BC, self.logit_rows(batch), targets)


def _as_two(logits_BK: Tensor) -> Tensor:
    """(B, 2) logits with the same probabilities, of one or two of them."""
    return logits_BK if logits_BK.shape[1] == 2 else torch.cat([torch.zeros_like(logits_BK), logits_BK], 1)


def _largest(values: list[float]) -> int:
    return values.index(max(values))
