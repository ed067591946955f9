"""Masked language modelling: which token stands where one was masked (Devlin et al. 2019).

Legend: M masked cells, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llm_arch.heads.language import MaskedHead, TokenScore, no_labels
from llm_arch.types import Batch, Hidden, LabelSpace, Prediction


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """What may stand at the masks of a row.

    Attributes:
        fills: for each mask token of the row in order, the most probable tokens, best first; empty without masks.
    """

    fills: list[list[TokenScore]]


class MaskedLanguageModel(MaskedHead):
    """BERT's head: a transform of the states at masked tokens, times the embeddings, plus a bias.

    Only masked cells are transformed, and their logits are never held whole in training and validation. Where the
    checkpoint brought a head of this kind, it goes on from that.

    Args:
        hidden_size: D.
        label_space: without labels.
        top_k: how many tokens a prediction names for each mask.
    """

    def __init__(self, hidden_size: int, label_space: LabelSpace, *, top_k: int = 5) -> None:
        super().__init__(hidden_size, top_k)
        self.label_space = no_labels(label_space)

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(M, V) logits."""
        return self.token_logits(hidden, batch)

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The most probable tokens for each mask."""
        rows = zip(batch.row_index.tolist(), self.best_tokens(logits, batch), strict=True)
        return [MaskPrediction(index, fills) for index, fills in rows]
