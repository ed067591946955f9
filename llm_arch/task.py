"""The one LightningModule: backbone, head, loss terms and optimizer.

Legend: T tokens, B sequences, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric

from llm_arch.adamw import RowAdamW
from llm_arch.backbones.load import backbone_from
from llm_arch.exact_steps import ExactSteps
from llm_arch.fewer_layers import keep_layers as keep_layers_of
from llm_arch.freezing import Freeze, freeze_backbone
from llm_arch.measures import Measures
from llm_arch.optim import make_embeddings_sparse, parameter_groups
from llm_arch.resuming import Standing
from llm_arch.schedules import Linear, Schedule
from llm_arch.seeding import mix, run_seed, seed_draws
from llm_arch.types import (
    Backbone,
    Batch,
    Detokenizer,
    Head,
    Hidden,
    LabelSpace,
    Loss,
    LossTerm,
    Pooling,
    Prediction,
    UserError,
)

# The best learning rate falls with the width (µP; Yang et al. 2022). 1e-4 at 384 is a compromise between validation
# rows: of 1e-4 and 2e-4 the first was better on SST-2, the second on Banking77. It makes 5e-5 at 768.
_RATE_TIMES_WIDTH = 1e-4 * 384
DEFAULT_WEIGHT_DECAY = 0.01


class Task(ExactSteps, Measures):
    """Backbone + head + loss terms + optimizer.

    Args:
        backbone: a `Backbone`, or the name of one: directory, hub id, `package:NAME/FOLDER`, preset, model directory.
        head: makes the head from the hidden size and the label space; usually a `Head` class.
        label_space: the labels; comes from the data.
        optimizer: makes the optimizer from parameter groups; None for AdamW with `learning_rate` and `weight_decay`.
        learning_rate: of the default optimizer; None for one that suits the hidden size, 1e-4 at 384 and 5e-5 at 768,
            times the head's `rate_factor`.
        weight_decay: of the default optimizer (0.01 when None), on all but biases, normalisation and embeddings.
        lr_scheduler: learning rate over the steps; None for linear decay after 10 % of warm-up.
        loss_terms: extra terms added to the head's loss.
        freeze: `none`, `backbone`, `embeddings`, or a number of layers frozen from below, embeddings included.
        dropout: dropout everywhere in the backbone; None keeps what its configuration says.
        pooling: how heads make one vector of a sequence; None for the backbone's own (mean for encoders, last token
            for decoders).
        vocabulary: tokens of the data's tokenizer, for which the backbone makes room; comes from the data.
        keep_layers: begin with some of a transformer's layers alone: how many, spread evenly and the last among them,
            or which, counted from 0; None for all.

    Attributes:
        records: what callbacks have to say of the model, JSON-able, by name; kept in its directory under `records`.
        loaded: whether backbone and head come from a directory, in eval mode, and so without dropout until they are
            trained.
    """

    loaded: bool = False

    def __init__(
        self,
        backbone: Backbone | str,
        head: Callable[[int, LabelSpace], Head],
        label_space: LabelSpace,
        *,
        optimizer: OptimizerCallable | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        lr_scheduler: Schedule | None = None,
        loss_terms: Sequence[LossTerm] = (),
        freeze: Freeze = "none",
        dropout: float | None = None,
        pooling: Pooling | None = None,
        vocabulary: int | None = None,
        keep_layers: int | list[int] | None = None,
    ) -> None:
        super().__init__()
        if optimizer is not None and not (learning_rate is None and weight_decay is None):
            raise UserError(
                "model.learning_rate and model.weight_decay belong to the default optimizer; "
                "beside model.optimizer give model.optimizer.lr and model.optimizer.weight_decay"
            )
        self.backbone = backbone_from(backbone) if isinstance(backbone, str) else backbone
        if vocabulary is not None:
            self.backbone.grow(vocabulary)
        if keep_layers is not None:
            keep_layers_of(self.backbone, keep_layers)
        if dropout is not None:
            if not hasattr(self.backbone, "set_dropout"):
                raise UserError(f"{type(self.backbone).__name__} has no model.dropout; set its own argument")
            self.backbone.set_dropout(dropout)  # type: ignore[operator]
        if pooling is not None:
            self.backbone.pooling = pooling
        self.head = head(self.backbone.hidden_size, label_space)
        self.head.bind(self.backbone)
        self.label_space = label_space
        self.optimizer_callable = optimizer
        suited = self.head.rate_factor * _RATE_TIMES_WIDTH / self.backbone.hidden_size
        self.learning_rate = suited if learning_rate is None else learning_rate
        self.weight_decay = DEFAULT_WEIGHT_DECAY if weight_decay is None else weight_decay
        self.lr_scheduler = lr_scheduler if lr_scheduler is not None else Linear(warmup=0.1)
        self.loss_terms = list(loss_terms)
        # What terms learn along is trained and kept in checkpoints as the model is, and not saved with it.
        self.terms = nn.ModuleList()
        freeze_backbone(self.backbone, freeze)
        self.evaluated: Metric = self.head.metrics()
        self.evaluated_loss = MeanMetric()
        self.report: dict[str, dict[str, Any]] = {}
        self.records: dict[str, Any] = {}
        # Whether callbacks still change the model's shape or zeros: no state on the way can be the best one.
        self.changing = False
        self.train_seconds = 0.0
        self.trained_rows = self.trained_tokens = 0
        self._mark = 0.0
        self._standing = Standing()

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the head."""
        logits: Tensor = self.head(self.backbone(batch), batch)
        return logits

    def loss(self, batch: Batch) -> Loss:
        """The head's loss plus all terms, over the head's denominator."""
        hidden: Hidden = self.backbone(batch, all_hidden=any(term.layers for term in self.loss_terms))
        loss = self.head.loss(hidden, batch)
        total = loss.sum
        for term in self.loss_terms:
            extra = term(self.backbone, batch, hidden, self.head)
            total = total + extra.sum * (loss.denominator / extra.denominator)
        return Loss(total, loss.denominator)

    # Training

    def on_fit_start(self) -> None:
        """Put a loaded model, which was ready to predict, in train mode; others keep the modes of their parts."""
        if self.loaded:
            self.train()

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    # Validation and checkpoints are not training time: the clock starts anew after them.
    on_validation_end = on_train_epoch_start

    def on_train_start(self) -> None:
        """Start the clock (a run resumed within an epoch starts none), and let validation wait for steps to end."""
        self._standing.start(self.trainer)
        self._mark = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the time of a step and of loading its batch."""
        now = time.perf_counter()
        self.train_seconds += now - self._mark
        self._mark = now

    def setup(self, stage: str) -> None:
        """Check what only model and data together can tell, before training and before measuring."""
        if stage == "fit":
            for term in self.loss_terms:
                term.begin(self.backbone, self.head)
                term.prepare(self.trainer)
            self.terms = nn.ModuleList(term for term in self.loss_terms if isinstance(term, nn.Module))
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, WritesTexts):
            data.suit(self.backbone)
            self.head.read_as(data.detokenizer)
        added = getattr(data, "vocabulary", None)
        if added is not None and added > self.backbone.embeddings.num_embeddings:
            raise UserError(
                f"the data's tokenizer has {added} tokens, the backbone has embeddings for "
                f"{self.backbone.embeddings.num_embeddings}; pass vocabulary=data.vocabulary to Task"
            )
        longest = getattr(data, "max_length", None)
        if longest and self.backbone.max_length and longest > self.backbone.max_length:
            raise UserError(
                f"data.max_length is {longest}, but the backbone has {self.backbone.max_length} positions; "
                f"set --data.max_length {self.backbone.max_length} or less"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from (seed, epoch, global micro-batch): the same on resume, and on any number of ranks."""
        micro_batch = batch_idx * self.trainer.world_size + self.trainer.global_rank
        seed_draws(mix(run_seed(), self.trainer.current_epoch, micro_batch), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss to go backward, logged and counted."""
        loss = self.loss(batch)
        self.trained_rows += batch.rows * self.trainer.world_size
        tokens = len(batch.input_ids) if batch.valid is None else int(batch.lengths.sum())
        self.trained_tokens += tokens * self.trainer.world_size
        # Lightning turns what is in the progress bar into a number in every step, and so waits for a GPU.
        in_bar = not getattr(self.trainer, "shows_loss", False)
        self.log("train/loss", loss.mean.detach(), batch_size=batch.size, prog_bar=in_bar)
        return self.to_backward(loss)

    def configure_optimizers(self) -> Any:
        """Optimizer and per-step schedule."""
        groups = parameter_groups(self, self.weight_decay)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = False  # set by an earlier fit; not every optimizer takes sparse gradients
        if self.optimizer_callable is None:
            dense = self._standing.dense or any(isinstance(parameter, DTensor) for parameter in self.parameters())
            if self.trainer.world_size == 1 and self.device.type == "cpu" and not dense:
                make_embeddings_sparse(self, keep_dense=[self.backbone.embeddings] if self.head.ties_embeddings else [])
            optimizer: Optimizer = RowAdamW(groups, lr=self.learning_rate)
        else:
            for group in groups:
                if group["weight_decay"]:
                    del group["weight_decay"]  # the optimizer's own counts
            optimizer = self.optimizer_callable(groups)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        # A run without steps, in which callbacks alone change the model, has a schedule too.
        schedule = self.lr_scheduler(optimizer, max(1, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Checkpoints

    def on_validation_epoch_end(self) -> None:
        """Log what was found, and note that this validation is done."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self._standing.validated(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the run stands, and what pruning has left of the backbone."""
        self._standing.save(self.trainer, checkpoint)
        checkpoint["backbone"] = self.backbone.shape()
        checkpoint["records"] = self.records

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find the place where the run stood, and give the backbone the shape it had there."""
        self._standing.load(self.trainer, checkpoint)
        self.backbone.reshape(checkpoint.get("backbone", {}))
        self.records = checkpoint.get("records", {})

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """Typed predictions of one batch; `llm_arch.inference.predict` puts those of all batches in input order."""
        return self.head.decode(self(batch), batch)


@runtime_checkable
class WritesTexts(Protocol):
    """A data module whose rows hold texts to write."""

    @property
    def detokenizer(self) -> Detokenizer:
        """How tokens become texts."""
        ...

    def suit(self, backbone: Backbone) -> None:
        """Make batches as the backbone reads them."""
        ...
