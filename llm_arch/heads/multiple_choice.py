"""Which of the choices of a question is the answer.

Legend: T tokens, B sequences (choices of all questions), R rows (questions), D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torchmetrics import Metric

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
)
from llm_arch.types.explaining import weighted_sums


@dataclass(frozen=True)
class ChoicePrediction(Prediction):
    """The choice of a question.

    Attributes:
        label: its label, or its number from 0 where the choices have none.
        text: its text, where the texts are known.
        score: its probability.
        scores: probability of each choice, by label.
    """

    label: str
    text: str
    score: float
    scores: dict[str, float]


class MultipleChoice(Head):
    """A score for each choice, by a linear layer on one vector a sequence, and a softmax over the choices of each row.

    Rows may have any number of choices, which are the sequences of the row; there is no padding to the most of them.

    Args:
        hidden_size: D.
        label_space: empty: what can be chosen is another thing in each row.
        pooling: how a sequence becomes one vector; None takes the backbone's.
        dropout: probability on the pooled vector.
    """

    major = "accuracy"
    mode = "max"

    def __init__(
        self, hidden_size: int, label_space: LabelSpace, *, pooling: Pooling | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if label_space != LabelSpace(()):
            raise UserError(
                "multiple choice needs rows with choices, the data has other labels; see MultipleChoiceData"
            )
        self.label_space = label_space
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.rate = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)

    def bind(self, backbone: Backbone) -> None:
        """Take the backbone's pooling unless one was given."""
        self.pooling = self.pooling or backbone.pooling

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(B,) logits: one for each choice."""
        pooled_BD = batch.pool(hidden.last_TD, self.pooling or "first")
        logits: Tensor = self.rate(self.dropout(pooled_BD))[:, 0]
        return logits

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Cross-entropy of the choices of each row, summed over rows."""
        chances_B = log_softmax(self(hidden, batch).float(), batch)
        answer_R = _firsts(batch) + _answers(batch)
        return Loss(-chances_B[answer_R].sum(), float(batch.rows))

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """The divergence of the probabilities of each row's choices, summed over rows."""
        ours_B, theirs_B = (log_softmax(x.float() / temperature, batch) for x in (self(hidden, batch), taught.logits))
        sum_ = kl_div(ours_B, theirs_B, reduction="sum", log_target=True)
        return Loss(sum_ * temperature**2, float(batch.rows))

    def metrics(self) -> Metric:
        """Accuracy."""
        return ChoiceAccuracy()

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Which rows are right."""
        return (best(logits, batch) == _answers(batch),)

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The choice of each row by its number, with probabilities; the data module knows labels and texts."""
        scores = log_softmax(logits.float(), batch).exp().tolist()
        firsts = [*_firsts(batch).tolist(), batch.size]
        found: list[Prediction] = []
        for i, (index, choice) in enumerate(zip(batch.row_index.tolist(), best(logits, batch).tolist(), strict=True)):
            own = scores[firsts[i] : firsts[i + 1]]
            named = {str(number): score for number, score in enumerate(own)}
            found.append(ChoicePrediction(index, str(choice), "", own[choice], named))
        return found

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The logit of a choice by its label: the one that was taken unless told."""
        labels = list(prediction.scores)  # type: ignore[attr-defined]
        label = prediction.label if wanted is None else wanted  # type: ignore[attr-defined]
        if label not in labels:
            raise UserError(f"there is no choice {label!r}; the choices are: {', '.join(labels)}")
        return Target(f"choice {label}", ((labels.index(label), 0, 1.0),), wanted=label)

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) that of the choice."""
        return weighted_sums(log_softmax(logits.float(), batch).exp(), self.logit_rows(batch), targets)


class ChoiceAccuracy(Metric):
    """Share of the rows whose choice is right, from counts alone: exact for any batch size and number of ranks."""

    full_state_update = False
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")  # right, all

    def update(self, right: Tensor) -> None:
        """Count one batch.

        Args:
            right: (R,) whether each row is right.
        """
        self.rows += torch.stack([right.sum(), torch.as_tensor(len(right), device=right.device)])

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`; 0 where nothing was counted."""
        return {"accuracy": self.rows[0] / self.rows[1].clamp(min=1)}


def log_softmax(logits_B: Tensor, batch: Batch) -> Tensor:
    """(B,) log-probabilities of the sequences among those of their row."""
    row_B = batch.row_of_sequence
    shifted_B = logits_B - _tops(logits_B.detach(), batch)[row_B]
    total_R = shifted_B.new_zeros(batch.rows).index_add(0, row_B, shifted_B.exp())
    return shifted_B - total_R.log()[row_B]


def best(logits_B: Tensor, batch: Batch) -> Tensor:
    """(R,) the number, within its row, of the sequence with the highest logit; the first of equal ones."""
    row_B = batch.row_of_sequence
    place_B = torch.arange(batch.size, device=logits_B.device) - _firsts(batch)[row_B]
    far = torch.where(logits_B == _tops(logits_B, batch)[row_B], place_B, batch.size)
    return far.new_full((batch.rows,), batch.size).scatter_reduce(0, row_B, far, "amin")


def _answers(batch: Batch) -> Tensor:
    if "choice" not in batch.labels:
        raise UserError("multiple choice needs rows with choices, which the data module doesn't give; take another")
    return batch.labels["choice"]


def _tops(logits_B: Tensor, batch: Batch) -> Tensor:
    """(R,) the highest logit of each row."""
    low_R = logits_B.new_full((batch.rows,), float("-inf"))
    return low_R.scatter_reduce(0, batch.row_of_sequence, logits_B, "amax")


def _firsts(batch: Batch) -> Tensor:
    """(R,) the first sequence of each row."""
    sizes_R = torch.bincount(batch.row_of_sequence, minlength=batch.rows)
    return sizes_R.cumsum(0) - sizes_R
