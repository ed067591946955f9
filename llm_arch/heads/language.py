"""What heads over a vocabulary share: the tie to the embeddings, loss, scores, and the most probable tokens.

Legend: T tokens, R rows, M cells that say something about the vocabulary, D hidden size, E embedding size,
V vocabulary, K best tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear
from torchmetrics import Metric
from transformers.activations import ACT2FN

from llm_arch.heads.vocabulary import LanguageModelMetrics, vocabulary_loss, vocabulary_scores
from llm_arch.heads.vocabulary_divergence import vocabulary_divergence
from llm_arch.types import (
    Backbone,
    Batch,
    Head,
    Hidden,
    LabelSpace,
    Loss,
    Prediction,
    Reading,
    Target,
    Taught,
    UserError,
)
from llm_arch.types.explaining import weighted_sums

_STD = 0.02  # of new weights, as in BERT and GPT-2
_PARTS = {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"}  # of a checkpoint's head that is complete


@dataclass(frozen=True)
class TokenScore:
    """A token and how probable it is.

    Attributes:
        id: its number in the vocabulary.
        score: probability, in [0, 1].
        token: as text, where the tokenizer is known.
    """

    id: int
    score: float
    token: str = ""


class VocabularyHead(Head):
    """A head with logits over the vocabulary: transformed states · weightᵀ + bias.

    The weight is the backbone's embeddings unless the head has one of its own. It is then asked of the backbone each
    time and no parameter of the head, so that it is saved, moved and updated once.

    Args:
        hidden_size: D.
        top_k: how many tokens a prediction names.

    Attributes:
        kind: which head of a checkpoint goes on in this one.
        weight: (V, E) of an untied head, else None.
        bias: (V,), or None.
        compiled: whether the loss goes through `torch.compile` on a GPU.
        rounds: what the weight goes through before it is multiplied with, where a run trains for int8.
    """

    major = "perplexity"
    mode: Literal["min", "max"] = "min"
    ties_embeddings = True
    kind: Literal["masked", "causal"]
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    compiled = False
    rounds: Callable[[Tensor], Tensor] | None = None

    def __init__(self, hidden_size: int, top_k: int) -> None:
        super().__init__()
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        self.hidden_size = hidden_size
        self.top_k = top_k
        self._backbone: tuple[Backbone, ...] = ()  # in a tuple, or nn.Module would register it here too

    def bind(self, backbone: Backbone) -> None:
        """Tie to the embeddings; the first time, build the layers and fill them with the checkpoint's.

        Raises:
            UserError: the backbone does not suit the task, or the checkpoint's head does not fit.
        """
        self.check(backbone)
        first, self._backbone = not self._backbone, (backbone,)
        if first:
            found = backbone.output_head(self.kind)
            self.build(backbone, found)
            self.ties_embeddings = self.weight is None
            if found is not None:
                self._fill(found)

    @abstractmethod
    def check(self, backbone: Backbone) -> None:
        """Raise a UserError where the backbone's states don't suit the task."""

    @abstractmethod
    def build(self, backbone: Backbone, found: Mapping[str, Tensor] | None) -> None:
        """Make all layers, `weight` and `bias`, for the head that the checkpoint brought along, if it did."""

    @torch.no_grad()
    def _fill(self, found: Mapping[str, Tensor]) -> None:
        own = dict(self.named_parameters())
        for name in found.keys() & own.keys():
            if found[name].shape != own[name].shape:
                shapes = f"{tuple(found[name].shape)}, this one needs {tuple(own[name].shape)}"
                raise UserError(f"the checkpoint's language-model head has a {name} of shape {shapes}")
            own[name].copy_(found[name])
        kind, new, left = type(self).__name__, (own.keys() & _PARTS) - found.keys(), found.keys() - own.keys()
        if new:
            rank_zero_only(print)(f"{kind}: the checkpoint's head has no {', '.join(sorted(new))}; new weights there")
        if left:
            rank_zero_only(print)(f"{kind}: {', '.join(sorted(left))} of the checkpoint's head is not used")

    @torch.no_grad()
    def keep_vocabulary(self, kept: Tensor) -> None:
        """Keep the bias, and the rows of a weight of its own, of these tokens (K,) only."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.grad = None
                parameter.data = parameter.detach()[kept.to(parameter.device)]

    @property
    def projection(self) -> Tensor:
        """(V, E): what transformed states are multiplied with."""
        weight_VE = self._backbone[0].embeddings.weight if self.weight is None else self.weight
        return weight_VE if self.rounds is None else self.rounds(weight_VE)

    @abstractmethod
    def transform(self, hidden_MD: Tensor) -> Tensor:
        """(M, D) states → (M, E)."""

    def cells(self, batch: Batch) -> Tensor | None:
        """(M,) which of the batch's T cells say something about the vocabulary; None for all."""
        if "positions" in batch.labels:
            return batch.labels["positions"]
        return None if batch.valid is None else batch.valid.nonzero()[:, 0]

    def targets(self, batch: Batch) -> Tensor:
        """(M,) the right tokens there."""
        if "targets" not in batch.labels:
            raise UserError(
                f"{type(self).__name__} learns tokens, and the data module gives none as targets; take another one"
            )
        targets = batch.labels["targets"]
        return targets if batch.valid is None or "positions" in batch.labels else targets[batch.valid]

    def states(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(M, E): transformed states of the cells that count, and of no other."""
        cells_M = self.cells(batch)
        # `embedding` gathers as `index_select` does, forward and backward in half the time on a CPU.
        return self.transform(hidden.last_TD if cells_M is None else embedding(cells_M, hidden.last_TD))

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """(M, V) logits of states, held whole: for a few cells."""
        return linear(self.transform(hidden_MD), self.projection, self.bias)

    def token_logits(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(M, V) logits, held whole: for a few cells."""
        return linear(self.states(hidden, batch), self.projection, self.bias)

    def token_loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Cross-entropy summed over the cells, over their number."""
        states_ME, targets_M = self.states(hidden, batch), self.targets(batch)
        parts = states_ME, self.projection, self.bias, targets_M
        return Loss(vocabulary_loss(*parts, compiled=self.compiled), float(len(targets_M)))

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """The divergence of the probabilities of tokens, summed over the cells that count, over their number.

        Neither model's logits are held whole. Tokens that only one of the two has a number for are left out.
        """
        theirs = taught.head
        assert isinstance(theirs, VocabularyHead)
        assert taught.hidden is not None
        with torch.no_grad():
            wanted_MF = theirs.states(taught.hidden, batch)
        states_ME = self.states(hidden, batch)
        shared = min(len(self.projection), len(theirs.projection))
        ours = (states_ME, *_first(shared, self.projection, self.bias))
        teachers = (wanted_MF, *_first(shared, theirs.projection, theirs.bias))
        return Loss(vocabulary_divergence(ours, teachers, temperature), float(len(states_ME)))

    @torch.no_grad()
    def token_scores(self, hidden: Hidden, batch: Batch) -> tuple[Tensor, Tensor]:
        """(M,) negative log-likelihoods of the targets in nats, and (M,) whether each is the most probable token."""
        return vocabulary_scores(self.states(hidden, batch), self.projection, self.bias, self.targets(batch))

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Cross-entropy summed over the cells that count, over their number."""
        return self.token_loss(hidden, batch)

    def evaluate(self, hidden: Hidden, batch: Batch, *, final: bool = False) -> tuple[Loss, tuple[Any, ...]]:
        """The loss, without gradients, and what the metrics count, from one pass over the vocabulary."""
        nll_M, right_M = self.token_scores(hidden, batch)
        return Loss(nll_M.sum(), float(len(nll_M))), (nll_M, right_M, batch.labels.get("text_bytes"))

    def metrics(self) -> Metric:
        """Perplexity, accuracy, and bits per byte where the data says how many bytes."""
        return LanguageModelMetrics()

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Any, ...]:
        """Negative log-likelihoods, whether the most probable token is right, and bytes; see `evaluate`."""
        targets_M = self.targets(batch)
        nll_M = cross_entropy(logits.float(), targets_M, reduction="none")
        return nll_M, logits.argmax(1) == targets_M, batch.labels.get("text_bytes")

    def best_tokens(self, logits: Tensor, batch: Batch) -> list[list[list[TokenScore]]]:
        """For each of the R rows, for each of its cells in order: the K most probable tokens, best first."""
        score_MK, id_MK = logits.float().softmax(1).topk(min(self.top_k, logits.shape[1]), 1)
        rows: list[list[list[TokenScore]]] = [[] for _ in range(batch.rows)]
        row_M = self.logit_rows(batch).tolist()
        for row, ids, scores in zip(row_M, id_MK.tolist(), score_MK.tolist(), strict=True):
            rows[row].append([TokenScore(*pair) for pair in zip(ids, scores, strict=True)])
        return rows

    def logit_rows(self, batch: Batch) -> Tensor:
        """(M,): the rows of the cells."""
        cells_M = self.cells(batch)
        return batch.row_of_sequence[batch.segments if cells_M is None else batch.segments[cells_M]]

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The logit of a token where the model was asked: the most probable one unless told, at the first mask.

        Raises:
            UserError: what is wanted is no single token.
        """
        # Of a row with several masks the first is explained; of a causal model there is the next token alone.
        best: list[TokenScore] = getattr(prediction, "tokens", None) or prediction.fills[0]  # type: ignore[attr-defined]
        ids = [best[0].id] if wanted is None else list(reading.token_ids(wanted))
        if len(ids) != 1:
            parts = ", ".join(repr(reading.token_text(token)) for token in ids)
            raise UserError(
                f"{wanted!r} is {len(ids)} tokens of this model ({parts}), which says one at a time; name a single one"
            )
        text = reading.token_text(ids[0])
        return Target(f"token {text!r}", ((0, ids[0], 1.0),), wanted=text)

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) that of the token."""
        return weighted_sums(logits.float().softmax(1), self.logit_rows(batch), targets)


class MaskedHead(VocabularyHead):
    """Logits at masked tokens, with BERT's transform: layer norm of the activation of a linear layer, D → E."""

    kind = "masked"

    def check(self, backbone: Backbone) -> None:
        """Refuse states that have not seen what follows."""
        if backbone.causal:
            raise UserError(
                "masked language modelling needs a backbone that sees what follows a token, and this one sees only "
                "what comes before; take an encoder, or the head LanguageModel"
            )

    def build(self, backbone: Backbone, found: Mapping[str, Tensor] | None) -> None:
        """Make the transform in the checkpoint's style."""
        style, table_VE = backbone.head_style(), backbone.embeddings.weight
        size = table_VE.shape[1]
        self.dense = new_linear(self.hidden_size, size, bias=style.get("dense_bias", True))
        self.activation = ACT2FN[style.get("activation", "gelu")]
        self.norm = nn.LayerNorm(size, eps=style.get("norm_eps", 1e-12), bias=style.get("norm_bias", True))
        self.weight = nn.Parameter(torch.empty_like(table_VE)) if found is not None and "weight" in found else None
        self.bias = nn.Parameter(torch.zeros(len(table_VE))) if style.get("bias", True) else None

    def transform(self, hidden_MD: Tensor) -> Tensor:
        """(M, E)."""
        transformed_ME: Tensor = self.norm(self.activation(self.dense(hidden_MD)))
        return transformed_ME

    def cells(self, batch: Batch) -> Tensor:
        """(M,) the masked cells."""
        if "positions" not in batch.labels:
            raise UserError(
                f"{type(self).__name__} needs masked tokens, which the data module doesn't give; "
                "take one that masks, such as MaskedTokenData"
            )
        return batch.labels["positions"]


def _first(count: int, weight_VE: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Those of the first tokens; the same ones where there are no more."""
    if len(weight_VE) == count:
        return weight_VE, bias_V
    return weight_VE[:count], None if bias_V is None else bias_V[:count]


def no_labels(labels: LabelSpace) -> LabelSpace:
    """The label space, which must be empty: what language models predict are the tokens themselves."""
    if len(labels):
        raise UserError(f"language models predict tokens, but the data has labels: {', '.join(labels.names[:12])}")
    return labels


def new_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with BERT's initial weights."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=_STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
