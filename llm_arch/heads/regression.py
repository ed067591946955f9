"""A number for each sequence.

Legend: T tokens, B sequences, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss
from torchmetrics import Metric

from llm_arch.heads.numbers import NumberMetrics
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

Error = Literal["mse", "huber", "mae"]


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """A number.

    Attributes:
        value: the number, in the unit of the training rows.
    """

    value: float


class Regression(Head):
    """Linear regression on one vector a sequence.

    The layer learns targets that are standardised by mean and standard deviation of the training rows, so that its
    learning rate suits any unit. Both are kept with the weights, and predictions are in the unit of the data.

    Args:
        hidden_size: D.
        label_space: carries mean and standard deviation as `moments`; without them targets are taken as they are.
        loss: of the standardised targets: `mse` squared error, `huber` squared up to a difference of `delta` and linear
            beyond (Huber 1964), `mae` absolute error.
        delta: see `loss`; in standard deviations of the training targets.
        pooling: how a sequence becomes one vector; None takes the backbone's.
        dropout: probability on the pooled vector.
    """

    major = "pearson"
    mode = "max"

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        loss: Error = "mse",
        delta: float = 1.0,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(label_space):
            raise UserError(f"regression needs numbers, the data has labels: {', '.join(label_space.names[:6])}")
        if loss not in ("mse", "huber", "mae"):
            raise UserError(f"loss must be mse, huber or mae, got {loss!r}")
        if not delta > 0:
            raise UserError(f"delta must be above 0, got {delta}")
        self.label_space = label_space
        self.error: Error = loss
        self.delta = delta
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.rate = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)
        mean, deviation = label_space.moments or (0.0, 1.0)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def bind(self, backbone: Backbone) -> None:
        """Take the backbone's pooling unless one was given."""
        self.pooling = self.pooling or backbone.pooling

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(B,) standardised numbers."""
        pooled_BD = batch.pool(hidden.last_TD, self.pooling or "first")
        logits: Tensor = self.rate(self.dropout(pooled_BD))[:, 0]
        return logits

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """The error of standardised numbers, summed over rows."""
        predicted_B = self(hidden, batch).float()
        truth_B = (_targets(batch) - self.mean) / self.deviation
        if self.error == "huber":
            sum_ = huber_loss(predicted_B, truth_B, reduction="sum", delta=self.delta)
        else:
            sum_ = {"mse": mse_loss, "mae": l1_loss}[self.error](predicted_B, truth_B, reduction="sum")
        return Loss(sum_, float(len(truth_B)))

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """The squared difference from the teacher's numbers in this head's standard deviations, summed over rows.

        There are no probabilities, and so no temperature.
        """
        assert isinstance(taught.head, Regression)
        wanted_B = (taught.head.values(taught.logits) - self.mean) / self.deviation
        predicted_B = self(hidden, batch).float()
        return Loss(mse_loss(predicted_B, wanted_B, reduction="sum"), float(len(predicted_B)))

    def values(self, logits_B: Tensor) -> Tensor:
        """(B,) numbers in the unit of the data."""
        return logits_B.float() * self.deviation + self.mean

    def metrics(self) -> Metric:
        """Pearson's and Spearman's correlation, RMSE and MAE."""
        return NumberMetrics()

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Predicted and true numbers."""
        return self.values(logits), _targets(batch)

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The number of each sequence."""
        rows = zip(batch.index.tolist(), self.values(logits).tolist(), strict=True)
        return [NumberPrediction(index, value) for index, value in rows]

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The number, in the unit of the data."""
        if wanted is not None:
            raise UserError(f"a regression gives one number, and there is no {wanted!r} to explain; leave --target out")
        return Target("the number", ((0, 0, float(self.deviation)),), float(self.mean))


def _targets(batch: Batch) -> Tensor:
    if "target" not in batch.labels:
        raise UserError("regression needs rows with a number, which the data module doesn't give; take another")
    return batch.labels["target"]
