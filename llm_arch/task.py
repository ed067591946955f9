"""The one LightningModule: backbone, head, loss terms and optimizer.

Legend: T tokens, B sequences, D hidden size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric

from llm_arch.adamw import RowAdamW
from llm_arch.backbones.load import backbone_from
from llm_arch.fewer_layers import keep_layers as keep_layers_of
from llm_arch.freezing import Freeze, freeze_backbone
from llm_arch.gradients import clip_gradients, clip_values, gradient_norm, scale_gradients
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


class Task(L.LightningModule):
    """Backbone + head + loss terms + optimizer.

    Losses are sums with a denominator: gradients are scaled once a step by what all micro-batches and ranks counted
    together, so that accumulation, packing and the number of devices do not change them.

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
        self._denominator: Tensor | float = 0.0
        # What turned the gradients of the last step's sums into those of the mean, for parameters of callbacks.
        self.gradient_factor = 1.0
        # Whether the step that has just ended was left out, its loss or gradient being no number; `Guard` says so.
        self.left_out = False
        self._wrong: Tensor | float = 0.0  # above 0 where a loss of this step is no number
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
        """The loss to go backward: a mean where one micro-batch makes the step, else a sum that is scaled later."""
        loss = self.loss(batch)
        self.trained_rows += batch.rows * self.trainer.world_size
        tokens = len(batch.input_ids) if batch.valid is None else int(batch.lengths.sum())
        self.trained_tokens += tokens * self.trainer.world_size
        self.log("train/loss", loss.mean.detach(), batch_size=batch.size, prog_bar=True)
        self._wrong = self._wrong + (~torch.isfinite(loss.sum.detach())).float()
        if self._engine_steps:
            counted, wrong = self._over_ranks(loss.denominator, self._wrong)
            if wrong > 0:
                raise UserError(
                    f"step {self.trainer.global_step}: the loss is not finite, and DeepSpeed can't leave a step out; "
                    "lower the learning rate, or find the row with -c hardware/ddp, which names it"
                )
            # DeepSpeed divides by the accumulation and by the ranks.
            return loss.sum * (self.trainer.world_size / (float(counted) or 1.0))
        if self._steps_alone:
            return loss.mean
        own = loss.denominator
        self._denominator += own.detach() if isinstance(own, Tensor) else own
        return loss.sum

    @property
    def _steps_alone(self) -> bool:
        return self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1

    @property
    def _engine_steps(self) -> bool:
        """Whether gradients are out of reach, so that losses must be scaled before they go backward."""
        return getattr(self.trainer.strategy, "strategy_name", "") == "deepspeed"

    def _over_ranks(self, *numbers: Tensor | float) -> tuple[Tensor, ...]:
        """Sums over all ranks."""
        exact = torch.float64 if self.device.type == "cpu" else torch.float32
        own = torch.stack([torch.as_tensor(n, dtype=exact).to(self.device) for n in numbers])
        return self.trainer.strategy.reduce(own, reduce_op="sum").unbind()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradient of the sum into that of the mean over everything counted since the last step."""
        if self.trainer.loggers:  # or nobody would see them
            self.log_dict({f"lr-{group.get('name', i)}": group["lr"] for i, group in enumerate(optimizer.param_groups)})
        self.gradient_factor = 1.0
        if self._steps_alone or self._engine_steps:
            return
        counted, self._wrong = self._over_ranks(self._denominator, self._wrong)
        self._denominator = 0.0
        # Lightning has divided by the accumulation, and DDP by the ranks.
        self.gradient_factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / (float(counted) or 1.0)
        scale_gradients(_parameters(optimizer), self.gradient_factor)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip dense and sparse gradients together, and drop them where they, or the loss, are no numbers.

        Without gradients an optimizer changes neither weights nor its own state.
        """
        parameters = _parameters(optimizer)
        norm: Tensor | float = 0.0
        if getattr(self.trainer.strategy, "strategy_name", "") in ("fsdp", "deepspeed"):
            if gradient_clip_val:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif not gradient_clip_val:
            norm = gradient_norm(parameters)
        elif gradient_clip_algorithm == "value":
            norm = gradient_norm(parameters)
            clip_values(parameters, float(gradient_clip_val))
        else:
            norm = clip_gradients(parameters, float(gradient_clip_val))
        self.left_out = bool(self._wrong > 0) or not math.isfinite(norm)
        self._wrong = 0.0
        if self.left_out:
            for parameter in parameters:
                parameter.grad = None

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

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._reset()

    on_test_epoch_start = on_validation_epoch_start

    def _reset(self) -> None:
        self.evaluated.reset()
        self.evaluated_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self._count(batch, final=False)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self._count(batch, final=True)

    def _count(self, batch: Batch, final: bool) -> None:
        loss, counted = self.head.evaluate(self.backbone(batch), batch, final=final)
        self.evaluated.update(*counted)
        self.evaluated_loss.update(loss.mean, loss.denominator)

    def on_validation_epoch_end(self) -> None:
        """Let the head tune its decision, then log `val/loss` and `val/<metric>`."""
        if not self.trainer.sanity_checking:  # a few rows and a model that has learnt nothing
            self.head.calibrate(self.evaluated)
            self._standing.validated(self.trainer)
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and `test/<metric>`."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        found = {**self.evaluated.compute(), "loss": self.evaluated_loss.compute()}
        if isinstance(self.evaluated, Reports):
            with self.evaluated.sync_context():
                self.report = self.evaluated.per_label()
        major = self.head.major
        for name, value in found.items():
            self.log(f"{prefix}/{name}", value, prog_bar=prefix == "val" and name == major)

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


@runtime_checkable
class Reports(Protocol):
    """A metric that can also say how each label did."""

    def per_label(self) -> dict[str, dict[str, Any]]:
        """Numbers by label."""
        ...

    def sync_context(self) -> AbstractContextManager[None]:
        """Gather the counts of all ranks for a while."""
        ...


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
