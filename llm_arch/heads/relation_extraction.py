"""The relation between two marked entities of a text.

Legend: T tokens, B sequences, D hidden size, F features of a sequence, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from llm_arch.heads.labels import label_target
from llm_arch.heads.relations import RelationMetrics
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
    UserError,
)
from llm_arch.types.explaining import weighted_sums

States = Literal["markers", "means", "both"]
_VECTORS = {"markers": 2, "means": 3, "both": 5}
_NEGATIVE = "Other"


@dataclass(frozen=True)
class RelationPrediction(Prediction):
    """The relation of two entities with its probability, and every relation's.

    Attributes:
        label: the most probable relation.
        score: its probability.
        scores: probability of every relation.
    """

    label: str
    score: float
    scores: dict[str, float]


class RelationExtraction(Head):
    """Classifier on the states of two entities: a linear layer with tanh, and a linear one.

    The states are those of the markers in front of the entities (Baldini Soares et al. 2019; the markers behind them
    in a decoder, where a state knows only what comes before it), or the means over the entities' tokens and the state
    of the whole sequence (Wu & He 2019), or all five.

    Args:
        hidden_size: D.
        label_space: the relations; those that end in (e1,e2) and (e2,e1) are the two directions of one.
        states: what the classifier sees: `markers`, `means` or `both`.
        hidden_layer: whether there is a layer of size D below the linear one.
        pooling: how the sequence becomes one vector; None takes the backbone's.
        dropout: probability on the states and on the hidden layer.
        class_weights: `balanced` weights each row by N / (C · count of its label); a mapping weights labels by name.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        negative: the label of entities that have no relation, which F1 leaves out. `Other` may be absent: then every
            label counts, as it does with None.
    """

    major = "macro_f1"
    mode = "max"

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        states: States = "both",
        hidden_layer: bool = True,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
        negative: str | None = _NEGATIVE,
    ) -> None:
        super().__init__()
        _check(label_space, states, label_smoothing, negative)
        self.label_space = label_space
        self.states: States = states
        self.pooling = pooling
        self.label_smoothing = label_smoothing
        self.negative = negative if negative in label_space.names else None
        self.marker = 0
        features = _VECTORS[states] * hidden_size
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(features, hidden_size) if hidden_layer else None
        self.classify = nn.Linear(hidden_size if hidden_layer else features, len(label_space))
        nn.init.normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)
        self.weights_C: Tensor | None
        self.register_buffer("weights_C", weights_of(class_weights, label_space), persistent=False)

    def bind(self, backbone: Backbone) -> None:
        """Take the backbone's pooling unless one was given, and the closing markers of a decoder."""
        self.pooling = self.pooling or backbone.pooling
        self.marker = int(getattr(backbone, "is_decoder", False))

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(B, C) logits."""
        states_BF = self.dropout(self._states(hidden.last_TD, batch))
        if self.hidden is not None:
            states_BF = self.dropout(self.hidden(states_BF).tanh())
        logits: Tensor = self.classify(states_BF)
        return logits

    def _states(self, hidden_TD: Tensor, batch: Batch) -> Tensor:
        """(B, F): what the classifier sees, side by side."""
        head_B2, tail_B2 = _markers(batch)
        markers = [hidden_TD[place_B2[:, self.marker]] for place_B2 in (head_B2, tail_B2)]
        if self.states == "markers":
            return torch.cat(markers, 1)
        means = [_mean_between(hidden_TD, place_B2, batch) for place_B2 in (head_B2, tail_B2)]
        rest = [batch.pool(hidden_TD, self.pooling or "first"), *means]
        return torch.cat(rest if self.states == "means" else [*markers, *rest], 1)

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Cross-entropy summed over rows."""
        logits_BC, truth_B, weights_C = self(hidden, batch).float(), batch.labels["label"], self.weights_C
        sum_ = cross_entropy(
            logits_BC, truth_B, weight=weights_C, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return Loss(sum_, float(len(truth_B)) if weights_C is None else weights_C[truth_B].sum())

    def metrics(self) -> Metric:
        """The scores of SemEval-2010 Task 8."""
        return RelationMetrics(self.label_space.names, self.negative)

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Predicted and true classes."""
        return logits.argmax(1), batch.labels["label"]

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The relation of each row, with probabilities."""
        names = self.label_space.names
        found: list[Prediction] = []
        for index, row in zip(batch.index.tolist(), logits.float().softmax(1).tolist(), strict=True):
            scores = dict(zip(names, row, strict=True))
            label = max(names, key=scores.__getitem__)
            found.append(RelationPrediction(index, label, scores[label], scores))
        return found

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The logit of a relation: the predicted one unless told."""
        predicted: str = prediction.label  # type: ignore[attr-defined]
        return label_target(self.label_space, predicted if wanted is None else wanted, "relation")

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) that of the relation."""
        return weighted_sums(logits.float().softmax(1), self.logit_rows(batch), targets)


def _markers(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, 2) each: the tokens that open and close the head, and those of the tail."""
    if batch.words is None or batch.words.token.shape[0] != 4 * batch.size:
        raise UserError("relation extraction needs two marked entities a row; take a data module that marks them")
    token_B4 = batch.words.token.view(-1, 4)
    return token_B4[:, :2], token_B4[:, 2:]


def _mean_between(hidden_TD: Tensor, place_B2: Tensor, batch: Batch) -> Tensor:
    """(B, D): the mean over the tokens between two markers, zero where there are none."""
    token_T = torch.arange(hidden_TD.shape[0], device=hidden_TD.device)
    first_T, last_T = place_B2[batch.segments].unbind(1)
    inside_T = (first_T < token_T) & (token_T < last_T)
    inside_TD = hidden_TD.masked_fill(~inside_T[:, None], 0.0)
    total_BD = hidden_TD.new_zeros(batch.size, hidden_TD.shape[1]).index_add(0, batch.segments, inside_TD)
    count_B = (place_B2[:, 1] - place_B2[:, 0] - 1).clamp(min=1)
    return total_BD / count_B[:, None].to(hidden_TD.dtype)


def _check(labels: LabelSpace, states: str, label_smoothing: float, negative: str | None) -> None:
    if labels.multi:
        raise UserError("relation extraction gives two entities one relation; the data has sets of labels")
    if len(labels) < 2:
        raise UserError(f"relation extraction needs at least two labels, the data has {list(labels.names)}")
    if states not in _VECTORS:
        raise UserError(f"states must be one of {', '.join(_VECTORS)}, got {states!r}")
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if negative not in (None, _NEGATIVE, *labels.names):
        raise UserError(
            f"negative is {negative!r}, which is none of the labels: {', '.join(labels.names[:12])}"
            f"{' …' if len(labels) > 12 else ''}"
        )
