"""Causal language modelling: which token comes next (Radford et al. 2019).

Legend: T tokens, M cells that say something about the vocabulary, D hidden size, E embedding size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm_arch.heads.language import TokenScore, VocabularyHead, new_linear, no_labels
from llm_arch.types import Backbone, Batch, Hidden, LabelSpace, Prediction, UserError


@dataclass(frozen=True)
class NextTokenPrediction(Prediction):
    """What may follow a row.

    Attributes:
        tokens: the most probable next tokens, best first.
    """

    tokens: list[TokenScore]


class LanguageModel(VocabularyHead):
    """The next token of every cell from its state: times the embeddings, or a weight of its own.

    The (T, V) logits are never held whole in training and validation. Where the embeddings are of another size than
    the states, a linear layer without bias comes between. Where the checkpoint brought a head of this kind, it goes on
    from that.

    Args:
        hidden_size: D.
        label_space: without labels.
        tied: whether to multiply with the embeddings; None for yes, unless the checkpoint has a weight of its own.
        top_k: how many tokens a prediction names.
    """

    kind = "causal"

    def __init__(self, hidden_size: int, label_space: LabelSpace, *, tied: bool | None = None, top_k: int = 5) -> None:
        super().__init__(hidden_size, top_k)
        self.label_space = no_labels(label_space)
        self.tied = tied

    def check(self, backbone: Backbone) -> None:
        """Refuse states that have seen the token they are to tell."""
        if not backbone.causal:
            raise UserError(
                "a causal language model needs a backbone whose states depend on no later token, and this one's do; "
                "take a decoder (gpt2, llama), RecurrentEncoder with bidirectional: false, ConvolutionalEncoder with "
                "causal: true, or the head MaskedLanguageModel"
            )

    def build(self, backbone: Backbone, found: Mapping[str, Tensor] | None) -> None:
        """Make the layers; an untied weight starts from the embeddings where the checkpoint's head is tied."""
        table_VE = backbone.embeddings.weight
        size = table_VE.shape[1]
        if self.tied is None:
            self.tied = found is None or "weight" not in found
            self.init_args["tied"] = self.tied  # for the model directory
        same = size == self.hidden_size
        self.project = new_linear(self.hidden_size, size, bias=False) if self.tied and not same else nn.Identity()
        self.weight = None
        if not self.tied:
            self.weight = nn.Parameter(new_linear(self.hidden_size, len(table_VE), bias=False).weight.detach())
            if found is not None and same:
                self.weight.data.copy_(table_VE.detach())
        self.bias = nn.Parameter(torch.zeros(len(table_VE))) if found is not None and "bias" in found else None

    def transform(self, hidden_MD: Tensor) -> Tensor:
        """(M, E)."""
        projected_ME: Tensor = self.project(hidden_MD)
        return projected_ME

    def cells(self, batch: Batch) -> Tensor | None:
        """(M,) the cells with a target; in prediction, unless told, the last of each sequence."""
        if "positions" in batch.labels or "targets" in batch.labels:
            return super().cells(batch)
        return batch.starts + batch.lengths - 1

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(M, V) logits."""
        return self.token_logits(hidden, batch)

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The most probable tokens after the last cell of each row."""
        rows = zip(batch.row_index.tolist(), self.best_tokens(logits, batch), strict=True)
        return [NextTokenPrediction(index, cells[-1]) for index, cells in rows]
