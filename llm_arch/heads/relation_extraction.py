"""The relation between two marked entities.

Legend: T tokens, B sequences, D hidden size, C classes, F features of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from llm_arch.heads.relations import RelationMetrics
from llm_arch.heads.weights import ClassWeights, weights_of
from llm_arch.types import Backbone, Batch, Head, Hidden, LabelSpace, Loss, Pooling, Prediction, UserError

States = Literal["markers", "means", "both"]
SCALE = 1.0

class RelationExtraction(Head):
    """x"""

    major = "macro_f1"
    mode = "max"

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        states: States = "markers",
        hidden_layer: bool = True,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
        negative: str | None = "Other",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.label_space = label_space
        self.states: States = states
        self.pooling = pooling
        self.label_smoothing = label_smoothing
        self.negative = negative
        self.dropout = nn.Dropout(dropout)
        self.scale=scale
        features = {"markers": 2, "means": 3, "both": 5}[states] * hidden_size
        self.mix = nn.Linear(features, hidden_size) if hidden_layer else None
        self.classify = nn.Linear(hidden_size if hidden_layer else features, len(label_space))
        nn.init.normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)
        self.weights_C: Tensor | None
        self.register_buffer("weights_C", weights_of(class_weights, label_space), persistent=False)

    def bind(self, backbone: Backbone) -> None:
        self.pooling = self.pooling or backbone.pooling

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(B, C) logits."""
        x = self._features(hidden.last_TD, batch)
        x = self.dropout(x)
        if self.mix is not None:
            x = self.dropout(torch.tanh(self.mix(x)))
        return self.classify(x)*self.scale

    def _features(self, hidden_TD, batch):
        token_B4 = batch.words.token.view(-1, 4)
        markers = [hidden_TD[token_B4[:, 0]], hidden_TD[token_B4[:, 2]]]
        if self.states == "markers":
            return torch.cat(markers, 1)
        means = [between(hidden_TD, token_B4[:, i]+1, token_B4[:, i+1]) for i in (0, 2)]
        rest = [batch.pool(hidden_TD, self.pooling or "first"), *means]
        return torch.cat(rest if self.states == "means" else [*markers, *rest], 1)

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        logits_BC, truth_B = self(hidden, batch).float(), batch.labels["label"]
        weights_C = self.weights_C
        sum_ = cross_entropy(logits_BC, truth_B, weight=weights_C, label_smoothing=self.label_smoothing, reduction="sum")
        return Loss(sum_, float(len(truth_B)) if weights_C is None else weights_C[truth_B].sum())

    def metrics(self) -> Metric:
        return RelationMetrics(self.label_space.names, self.negative)

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return logits.argmax(1), batch.labels["label"]

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        return []

def between(hidden_TD, start_B, end_B):
    lengths_B = end_B - start_B
    row_N = torch.repeat_interleave(torch.arange(len(lengths_B)), lengths_B)
    first = lengths_B.cumsum(0) - lengths_B
    token_N = torch.arange(len(row_N)) - first[row_N] + start_B[row_N]
    total = hidden_TD.new_zeros(len(lengths_B), hidden_TD.shape[1]).index_add(0, row_N, hidden_TD[token_N])
    return total / lengths_B.clamp(min=1)[:, None].to(hidden_TD.dtype)
