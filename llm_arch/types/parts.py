"""The abstract parts of a model, which YAML names by their class.

Legend: T tokens of the batch, D hidden size, E embedding size, V vocabulary, M states asked about.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from llm_arch.types.batch import Batch, Pooling
from llm_arch.types.errors import UserError
from llm_arch.types.explained import Explained
from llm_arch.types.labels import LabelSpace
from llm_arch.types.teaching import Taught, divergence
from llm_arch.types.values import Detokenizer, Hidden, Loss, Prediction

if TYPE_CHECKING:
    from torchmetrics import Metric


class Configured:
    """Remembers the arguments a part was built with, so that a model directory can name it and build it again."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the constructor's arguments by name."""
        part = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(part, *args, **kwargs).arguments
        object.__setattr__(part, "init_args", {k: v for k, v in bound.items() if k != "self"})
        return part

    @property
    def class_path(self) -> str:
        """Module and class, as YAML's `class_path` writes it."""
        return f"{type(self).__module__}.{type(self).__qualname__}"


class Backbone(Configured, nn.Module, ABC):
    """Batch → hidden states.

    Attributes:
        hidden_size: D.
        max_length: longest sequence in tokens, or None when there is no limit.
        pooling: how heads make one vector of a sequence unless told otherwise; subclasses set what suits their kind.
        causal: whether no state depends on a later token.
        is_decoder: whether heads read from left to right; causal backbones are, and XLNet, which sees both sides.
        encoder_decoder: whether it reads `batch.source` with an encoder and gives the states of a decoder.
    """

    hidden_size: int
    max_length: int | None
    pooling: Pooling
    causal: bool = False
    is_decoder: bool = False
    encoder_decoder: bool = False

    @property
    @abstractmethod
    def embeddings(self) -> nn.Embedding:
        """The token embeddings (V, D)."""

    @property
    def source_embeddings(self) -> nn.Embedding:
        """The token embeddings of what is read: of an encoder–decoder those of its encoder, else the only ones."""
        return self.embeddings

    @property
    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The stacked layers, lowest first (frozen from below by `model.freeze`)."""

    @abstractmethod
    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """States of the batch's tokens, in the batch's layout.

        Args:
            batch: the tokens.
            inputs_embeds: (T, D) word embeddings to use instead of looking up `batch.input_ids`.
            all_hidden: also return every layer's states.
        """

    def grow(self, vocabulary: int) -> None:
        """Make room for the data's tokenizer: embeddings for its `vocabulary` tokens, some of which may be new.

        What has learnt nothing yet and was given no size of its own may take exactly that many.

        Raises:
            UserError: when there is no room and this backbone can't make any.
        """
        if vocabulary > self.embeddings.num_embeddings:
            raise UserError(
                f"the tokenizer has {vocabulary} tokens, {type(self).__name__} embeddings for "
                f"{self.embeddings.num_embeddings}, and it can't make more"
            )

    def keep_vocabulary(self, kept: Tensor) -> None:
        """Keep the embeddings of these tokens only, which are numbered anew in this order.

        Heads that compute with the embeddings are told apart (`Head.keep_vocabulary`).

        Args:
            kept: (K,) ids in rising order.

        Raises:
            UserError: an id is none of these, or this backbone can't leave any out.
        """
        raise UserError(f"{type(self).__name__} can't leave tokens out of its vocabulary; take a model of transformers")

    def output_head(self, kind: Literal["masked", "causal"]) -> Mapping[str, Tensor] | None:
        """The language-model head that the weights came with, in fp32; None where they came with none of this kind.

        Args:
            kind: `masked`: `dense.weight` (E, D), `dense.bias`, `norm.weight`, `norm.bias` (E,) and `bias` (V,), some
                of which may be absent; E is the size of the embeddings. `causal`: `bias` (V,) if any, and of our own
                heads `project.weight` (E, D). Either has `weight` (V, E) only where it is not tied to the embeddings,
                so that a mapping may be empty. V is what the embeddings have now, grown or not.
        """
        return None

    def head_style(self) -> Mapping[str, Any]:
        """How language-model heads of this architecture compute, as far as it has a say.

        `activation`, a name of transformers; `norm_eps` of its layer norm; `dense_bias`, `norm_bias` and `bias`,
        whether a masked head has these; `tied`, whether its causal head is the embeddings.
        """
        return {}

    def generate(
        self,
        batch: Batch,
        logits: Callable[[Tensor], Tensor],
        *,
        end: Sequence[int],
        pad: int,
        max_new_tokens: int,
        **options: Any,
    ) -> list[list[int]]:
        """The tokens that follow each sequence, without it, the one that ended it left out.

        Args:
            batch: the beginnings, in either layout; of encoder–decoders the decoder's, with a `source`.
            logits: states (M, D) → logits (M, V) of the next token.
            end: tokens that end a text.
            pad: a token to fill up with.
            max_new_tokens: tokens to add at most; fewer where the context is full.
            **options: of transformers' `generate`.

        Raises:
            UserError: when this backbone can't.
        """
        raise UserError(
            f"text is generated by decoders and encoder–decoders of transformers (GPT-2, Llama, T5, BART), "
            f"{type(self).__name__} is none; take such a backbone, or ask for the next token with `llm-arch predict`"
        )

    def shape(self) -> dict[str, Any]:
        """What training has changed of the sizes of its parts, JSON-able: for checkpoints."""
        return {}

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Take the sizes that `shape` told, whose weights will be loaded; before there is an optimizer.

        Raises:
            UserError: these sizes do not come of this backbone.
        """
        if shape:
            raise UserError(f"the checkpoint is of a pruned backbone, and {type(self).__name__} can't be pruned")

    def settle(self) -> None:  # noqa: B027 - a hook
        """Make final what training left provisional, such as gates; called before the model is measured or saved."""

    @abstractmethod
    def save(self, directory: Path) -> dict[str, Any]:
        """Write configuration and weights as safetensors and JSON; return what `load` needs beyond the files."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Backbone:
        """Rebuild what `save` wrote, with equal outputs."""


class Head(Configured, Explained, nn.Module, ABC):
    """Hidden states → logits, loss, metrics and predictions of one task.

    Attributes:
        label_space: the labels in the order of the logits.
        major: name of the metric that early stopping and checkpoints follow.
        mode: whether `major` is better when higher ("max") or lower ("min").
        rate_factor: factor on the default learning rate of `Task`, for tasks that take larger steps well.
        ties_embeddings: whether the head computes with the backbone's token embeddings, as language models do.
        why_not_additive: why the sums of micro-batches are not those of one batch, where they are not; else None.
    """

    label_space: LabelSpace
    major: str
    mode: Literal["min", "max"]
    rate_factor: float = 1.0
    ties_embeddings: bool = False
    why_not_additive: str | None = None

    def bind(self, backbone: Backbone) -> None:  # noqa: B027 - a hook: most heads need no more than the hidden size
        """Called once with the backbone, for heads that read its pooling or share its embeddings."""

    def keep_vocabulary(self, kept: Tensor) -> None:
        """Called when the backbone has kept these tokens only, for heads that have a number for each token.

        Args:
            kept: (K,) ids in rising order.

        Raises:
            UserError: this head has such numbers and can't leave any out.
        """
        if self.ties_embeddings:
            raise UserError(f"{type(self).__name__} computes with the embeddings and can't leave tokens out")

    def read_as(self, detokenizer: Detokenizer) -> None:  # noqa: B027 - a hook
        """Called before a run with how the data turns tokens into texts, for heads that write and measure texts."""

    @abstractmethod
    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """Logits, only at the positions that matter."""

    @abstractmethod
    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Loss of the labels in the batch as sum and denominator."""

    @abstractmethod
    def metrics(self) -> Metric:
        """A fresh `torchmetrics.Metric` whose `compute` returns numbers by name, `major` among them."""

    @abstractmethod
    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Any, ...]:
        """What the metric's `update` takes for one batch."""

    def evaluate(self, hidden: Hidden, batch: Batch, *, final: bool = False) -> tuple[Loss, tuple[Any, ...]]:
        """The loss, and what the metric's `update` takes: for heads whose logits are too large to be held whole.

        Args:
            hidden: the backbone's states.
            batch: the batch, with labels.
            final: whether a finished model is measured, on test rows, and not a state on the way: what takes long may
                be counted then.
        """
        return self.loss(hidden, batch), self.metric_inputs(self(hidden, batch), batch)

    def calibrate(self, metric: Metric) -> None:  # noqa: B027 - a hook: most heads decide without a threshold
        """Called when all validation rows are counted and before `metric.compute`, for heads that tune a decision.

        What is tuned belongs into a buffer, so that it is kept with the weights. Other ranks' counts are in the metric
        only within its `sync_context`.

        Args:
            metric: what `metrics` made.
        """

    @abstractmethod
    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """One typed prediction a row."""

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """How far what this head says is from what a teacher says of the same batch, as sum and denominator.

        Here for logits (M, C) whose softmax over columns are probabilities; heads with other logits override this.

        Args:
            hidden: the student's states.
            batch: the batch.
            taught: what the teacher says, by a head of the same kind.
            temperature: what logits are divided by, above 0; does not change the size of gradients.
        """
        logits_MC = self(hidden, batch)
        if logits_MC.ndim != 2 or logits_MC.shape[1] < 2:
            raise UserError(
                f"logits of shape {tuple(logits_MC.shape)} are no scores of classes, and {type(self).__name__} has no "
                "`distil`; set the weight of logits to 0, so that states alone are distilled"
            )
        return Loss(divergence(logits_MC, taught.logits, temperature), float(len(logits_MC)))


class LossTerm(Configured, ABC):
    """An extra term added to the head's loss; shares its denominator, or returns a mean times it.

    Attributes:
        layers: whether it reads the states of all layers, `hidden.layers`.
    """

    layers: bool = False

    def begin(self, backbone: Backbone, head: Head) -> None:  # noqa: B027 - a hook
        """Called before training with the model as it is then, before a checkpoint is restored into it."""

    def prepare(self, trainer: Any) -> None:  # noqa: B027 - a hook
        """Called after `begin` with the trainer, whose data is ready, and before the model is on its device."""

    @abstractmethod
    def __call__(self, forward: Callable[[Batch], Hidden], batch: Batch, hidden: Hidden, head: Head) -> Loss:
        """The term for one batch; `forward` runs the backbone again (R-Drop, adversarial training)."""
