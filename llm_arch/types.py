"""The types that flow from data to prediction, and the abstract parts of a model.

Legend: T tokens of the batch, B sequences, R rows, W words, D hidden size, C classes, V vocabulary.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics import Metric

Pooling = Literal["first", "last", "mean", "max"]
_TINY = torch.finfo(torch.float32).tiny


class UserError(ValueError):
    """Wrong input from the user: one clear sentence naming file, row or key, and what to do next (exit code 2)."""


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a task, in the order of the logits.

    Args:
        names: the label names; position is the class index.
        counts: how often each label stands in the training split, or None when unknown; used by balanced weights.
        multi: whether an example carries a set of labels instead of exactly one.
        moments: mean and standard deviation of the training targets where they are numbers, which have no names.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    multi: bool = False
    moments: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise UserError(f"label names must be distinct, got {list(self.names)}")
        if self.counts is not None and len(self.counts) != len(self.names):
            raise UserError(f"{len(self.names)} labels but {len(self.counts)} counts")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The class index of a label name; raises UserError listing the known labels."""
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names[:12]) + (" …" if len(self.names) > 12 else "")
            raise UserError(f"unknown label {name!r}; the labels are: {known}") from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "names": list(self.names),
            "counts": list(self.counts) if self.counts else None,
            "multi": self.multi,
            **({"moments": list(self.moments)} if self.moments else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSpace:
        """The inverse of `to_dict`."""
        counts, moments = values.get("counts"), values.get("moments")
        return cls(
            tuple(values["names"]),
            tuple(counts) if counts else None,
            bool(values.get("multi", False)),
            (float(moments[0]), float(moments[1])) if moments else None,
        )


@dataclass(frozen=True)
class Words:
    """The words of a batch's rows: every word once, row by row in reading order.

    Where a long row was split into overlapping windows, a word stands in several of them; `token` points into the one
    that shows most of what surrounds it.

    Attributes:
        token: (W,) where among the batch's tokens the word's first subword lies.
        row: (W,) which of the batch's R rows it belongs to, 0 … R-1, ascending.
        start: (W,) its first character in the row's text.
        end: (W,) the character after its last.
    """

    token: Tensor
    row: Tensor
    start: Tensor
    end: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Words:
        """The same words on another device."""
        return Words(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))


@dataclass(frozen=True)
class Batch:
    """B token sequences, one after another, without padding between them.

    The padded layout of an export is the same type: T = B·L, `starts` = arange(B)·L, and `valid` marks real tokens.

    Attributes:
        input_ids: (T,) token ids.
        position_ids: (T,) position of each token in its own sequence, from 0.
        segments: (T,) which sequence a token belongs to, 0 … B-1.
        starts: (B,) index of each sequence's first token.
        lengths: (B,) tokens of each sequence, padding not counted.
        index: (B,) row number of each sequence in its data set.
        token_type_ids: (T,) 0 for the first text of a pair and 1 for the second, or None.
        valid: (T,) True for real tokens, or None in the flat layout, where all are.
        labels: what the head needs to compute its loss, by name; first dimension B, R, T or W, or told by other labels.
            Language models: `targets`, token ids to predict, at the cells `positions` or at all T; and `text_bytes`
            (R,), bytes of text that a row's targets stand for.
        words: the words of the rows, for tasks that say something of each word; else None.
        rows: R, the number of rows; below B where long rows were split into windows, which then follow each other.
        texts: what metrics over texts need of each row, by name, R values each: its text, the right answers. Never on
            a device.
        source: for encoder–decoders, the B sequences that the encoder reads, in the order of these, which are the
            decoder's; else None.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    starts: Tensor
    lengths: Tensor
    index: Tensor
    token_type_ids: Tensor | None = None
    valid: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    words: Words | None = None
    rows: int = -1
    texts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source: Batch | None = None

    def __post_init__(self) -> None:
        if self.rows < 0:
            object.__setattr__(self, "rows", len(self.starts))

    @property
    def size(self) -> int:
        """B, the number of sequences."""
        return len(self.starts)

    @property
    def row_index(self) -> Tensor:
        """(R,) row number of each row in its data set."""
        return self.index if self.rows == self.size else torch.unique_consecutive(self.index)

    @property
    def row_of_sequence(self) -> Tensor:
        """(B,) which of the batch's R rows each sequence belongs to, 0 … R-1, ascending."""
        if self.rows == self.size:
            return torch.arange(self.size, device=self.index.device)
        return torch.unique_consecutive(self.index, return_inverse=True)[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=non_blocking)

        tensors: dict[str, Any] = {k: move(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        words = self.words.to(device, non_blocking) if self.words is not None else None
        source = self.source.to(device, non_blocking) if self.source is not None else None
        labels = {k: move(v) for k, v in self.labels.items()}
        return replace(self, **tensors, labels=labels, words=words, source=source)

    def first_token(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the state of each sequence's first token."""
        return hidden_TD[self.starts]

    def last_token(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the state of each sequence's last real token."""
        return hidden_TD[self.starts + self.lengths - 1]

    def mean(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the mean over each sequence's real tokens."""
        if self.valid is not None:
            hidden_TD = hidden_TD * self.valid[:, None].to(hidden_TD.dtype)
        total_BD = hidden_TD.new_zeros(self.size, hidden_TD.shape[1]).index_add(0, self.segments, hidden_TD)
        return total_BD / self.lengths[:, None].to(hidden_TD.dtype)

    def max(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the elementwise maximum over each sequence's real tokens."""
        if self.valid is not None:
            hidden_TD = hidden_TD.masked_fill(~self.valid[:, None], float("-inf"))
        low_BD = hidden_TD.new_full((self.size, hidden_TD.shape[1]), float("-inf"))
        return low_BD.scatter_reduce(0, self.segments[:, None].expand_as(hidden_TD), hidden_TD, "amax")

    def pool(self, hidden_TD: Tensor, pooling: Pooling) -> Tensor:
        """(B, D): one vector a sequence, by the named pooling."""
        return {"first": self.first_token, "last": self.last_token, "mean": self.mean, "max": self.max}[pooling](
            hidden_TD
        )


class Hidden(NamedTuple):
    """What a backbone returns: the last layer's states (T, D), and all layers' (embeddings first) when asked for."""

    last_TD: Tensor
    layers: tuple[Tensor, ...] | None = None


class Loss(NamedTuple):
    """A loss as a sum and what it counts, so that accumulation, packing and ranks do not change it."""

    sum: Tensor
    denominator: Tensor | float

    @property
    def mean(self) -> Tensor:
        """The sum over the denominator; 0 where nothing counts, such as rows of weight 0 alone."""
        if isinstance(self.denominator, Tensor):
            return self.sum / self.denominator.clamp(min=_TINY)
        return self.sum / max(self.denominator, _TINY)


@dataclass(frozen=True)
class Prediction:
    """What a head says of one example; every task has a subclass with fields of its own.

    Attributes:
        index: row number of the example in its input.
    """

    index: int

    def to(self, device: torch.device | str) -> Prediction:
        """Itself: it holds no tensors, but Lightning moves what it collects, and takes frozen fields apart without."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without the row number."""
        return {k: v for k, v in asdict(self).items() if k != "index"}


@dataclass(frozen=True)
class Detokenizer:
    """How data that is to be written turns tokens into texts.

    Attributes:
        decode: token ids of some texts → the texts, special tokens left out.
        end: the tokens that end a text.
        pad: a token to fill up with.
        language: code of the language of the texts.
    """

    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    end: tuple[int, ...]
    pad: int
    language: str = "en"


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

    @abstractmethod
    def save(self, directory: Path) -> dict[str, Any]:
        """Write configuration and weights as safetensors and JSON; return what `load` needs beyond the files."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Backbone:
        """Rebuild what `save` wrote, with equal outputs."""


class Head(Configured, nn.Module, ABC):
    """Hidden states → logits, loss, metrics and predictions of one task.

    Attributes:
        label_space: the labels in the order of the logits.
        major: name of the metric that early stopping and checkpoints follow.
        mode: whether `major` is better when higher ("max") or lower ("min").
        rate_factor: factor on the default learning rate of `Task`, for tasks that take larger steps well.
        ties_embeddings: whether the head computes with the backbone's token embeddings, as language models do.
    """

    label_space: LabelSpace
    major: str
    mode: Literal["min", "max"]
    rate_factor: float = 1.0
    ties_embeddings: bool = False

    def bind(self, backbone: Backbone) -> None:  # noqa: B027 - a hook: most heads need no more than the hidden size
        """Called once with the backbone, for heads that read its pooling or share its embeddings."""

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


class LossTerm(Configured, ABC):
    """An extra term added to the head's loss; shares its denominator, or returns a mean times it."""

    @abstractmethod
    def __call__(self, forward: Callable[[Batch], Hidden], batch: Batch, hidden: Hidden, head: Head) -> Loss:
        """The term for one batch; `forward` runs the backbone again (R-Drop, adversarial training)."""
