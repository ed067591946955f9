"""BERT's two tasks at once: masked tokens, and whether the second text follows the first (Devlin et al. 2019).

With pairs in order and swapped, the second is ALBERT's sentence-order prediction (Lan et al. 2020).

Legend: B sequences (pairs), M masked cells, D hidden size, C classes of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from llm_arch.heads.labels import LabelPrediction, label_target
from llm_arch.heads.language import MaskedHead, new_linear
from llm_arch.heads.vocabulary import LanguageModelMetrics
from llm_arch.types import (
    Batch,
    Hidden,
    LabelSpace,
    Loss,
    Prediction,
    Reading,
    Target,
    Taught,
    UserError,
    divergence,
)
from llm_arch.types.explaining import weighted_sums


class BertPretraining(MaskedHead):
    """Masked tokens as in MaskedLanguageModel, and a classifier of pairs on BERT's pooler: tanh(dense(first state)).

    The loss of a batch is the mean over masked tokens plus the mean over pairs, as BERT's; it counts masked tokens, so
    that over accumulated batches and ranks the pairs of a batch weigh by its masked tokens. Logits and predictions are
    of pairs.

    Args:
        hidden_size: D.
        label_space: the labels of pairs.
    """

    why_not_additive = "the loss of pairs weighs by the masked tokens of its batch, as that of BERT does"

    def __init__(self, hidden_size: int, label_space: LabelSpace) -> None:
        super().__init__(hidden_size, top_k=1)
        if len(label_space) < 2 or label_space.multi:
            raise UserError(
                f"BertPretraining needs pairs with one of at least two labels, the data has {list(label_space.names)}; "
                "without pairs take MaskedLanguageModel"
            )
        self.label_space = label_space
        self.pooler = new_linear(hidden_size, hidden_size)
        self.classify = new_linear(hidden_size, len(label_space))

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(B, C) logits of pairs."""
        logits_BC: Tensor = self.classify(self.pooler(batch.first_token(hidden.last_TD)).tanh())
        return logits_BC

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """The masked tokens' sum, plus the pairs' mean times the number of masked tokens."""
        return self._with_pairs(self.token_loss(hidden, batch), self(hidden, batch), batch)

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """The masked tokens' sum, plus the pairs' mean times the number of masked tokens."""
        masked = super().distil(hidden, batch, taught, temperature)
        logits_BC = self(hidden, batch)
        pairs = divergence(logits_BC, taught.logits, temperature) / len(logits_BC)
        return Loss(masked.sum + pairs * masked.denominator, masked.denominator)

    def evaluate(self, hidden: Hidden, batch: Batch, *, final: bool = False) -> tuple[Loss, tuple[Any, ...]]:
        """The loss, and what the metrics count."""
        masked, counted = super().evaluate(hidden, batch)
        logits_BC = self(hidden, batch)
        return self._with_pairs(masked, logits_BC, batch), (*counted, *self._pairs(logits_BC, batch))

    def _with_pairs(self, masked: Loss, logits_BC: Tensor, batch: Batch) -> Loss:
        pairs = cross_entropy(logits_BC.float(), self._pairs(logits_BC, batch)[1])
        return Loss(masked.sum + pairs * masked.denominator, masked.denominator)

    def _pairs(self, logits_BC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) predicted and true classes."""
        if "label" not in batch.labels:
            raise UserError("BertPretraining needs pairs with a label, which the data module doesn't give")
        return logits_BC.argmax(1), batch.labels["label"]

    def metrics(self) -> Metric:
        """Perplexity and accuracy of masked tokens, and accuracy of pairs."""
        return BertPretrainingMetrics()

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Any, ...]:
        """Needs the states, which `evaluate` has."""
        raise NotImplementedError("the metrics count masked tokens too; use evaluate")

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The label of each pair, with probabilities."""
        found: list[Prediction] = []
        for index, row in zip(batch.index.tolist(), logits.float().softmax(1).tolist(), strict=True):
            scores = dict(zip(self.label_space.names, row, strict=True))
            label = max(scores, key=scores.__getitem__)
            found.append(LabelPrediction(index, label, scores[label], scores))
        return found

    def logit_rows(self, batch: Batch) -> Tensor:
        """(B,): the rows of the pairs, of which the logits are."""
        return batch.row_of_sequence

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The logit of a label of pairs: the predicted one unless told."""
        predicted: str = prediction.label  # type: ignore[attr-defined]
        return label_target(self.label_space, predicted if wanted is None else wanted)

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) that of the label."""
        return weighted_sums(logits.float().softmax(1), self.logit_rows(batch), targets)


class BertPretrainingMetrics(LanguageModelMetrics):
    """`perplexity` and `mlm_accuracy` of masked tokens, and `pair_accuracy`, the share of pairs that are right."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pairs", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(  # type: ignore[override] # takes more
        self, nll: Tensor, right: Tensor, text_bytes: Tensor | None, predicted: Tensor, truth: Tensor
    ) -> None:
        """Count one batch.

        Args:
            nll: (M,) as in `LanguageModelMetrics`, and so are `right` and `text_bytes`.
            right: (M,).
            text_bytes: (R,), or None.
            predicted: (B,) classes of pairs.
            truth: (B,) classes.
        """
        super().update(nll, right, text_bytes)
        self.pairs += torch.stack([(predicted == truth).sum(), torch.as_tensor(len(truth), device=truth.device)])

    def compute(self) -> dict[str, Tensor]:
        """`perplexity`, `mlm_accuracy`, `pair_accuracy`, and `bits_per_byte` where bytes were counted."""
        found = super().compute()
        found["mlm_accuracy"] = found.pop("accuracy")
        return found | {"pair_accuracy": (self.pairs[0] / self.pairs[1]).float()}
