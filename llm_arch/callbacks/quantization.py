"""Quantization-aware training: from when on a model trains as if it ran in int8. How, `llm_arch.compression` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from llm_arch import model_directory
from llm_arch.compression.fake_quantization import FakeQuantization
from llm_arch.compression.quantizable import quantizable
from llm_arch.types import Batch, UserError

_NOT_YET = "not quantized yet"  # true as True is, and known from what other callbacks say


class QuantizationAwareTraining(L.Callback):
    """Trains a model for int8, so that it loses little when it is exported in it (Jacob et al. 2018, arXiv 1712.05877).

    From `start` on, weights and inputs of the backbone's linear layers, and its embeddings, are rounded in every
    forward pass as the runtime rounds them, and gradients go straight through; the head stays as it is, as in exports.
    Validation, and the measurement after the run, round likewise: their numbers are those of the model in int8. What is
    saved are the weights in fp32, as the optimizer left them; their export has the whole numbers that were trained. The
    state that is kept as best is one after the start. A run without steps only measures what int8 does to the model.

    Args:
        target: the runtime. `onnxruntime`: dynamic int8, with a scale for each output of a layer and for the inputs of
            each sequence (`llm_arch.compression.int8`). torchao is none: not compiled, its int8 on a CPU was slower
            than fp32 in torch (0.18, scales for each token), and compiled slower than ONNX Runtime's.
        start: when rounding begins, as a share of the run's steps in [0, 1).
        embeddings: whether embeddings are int8 too; an export must then do the same.

    Raises:
        UserError: an argument is out of range.
    """

    compression = "quantization-aware training"  # how a model's record and card call it

    def __init__(
        self, target: Literal["onnxruntime"] = "onnxruntime", *, start: float = 0.0, embeddings: bool = True
    ) -> None:
        if target != "onnxruntime":
            raise UserError(f"target must be onnxruntime, got {target!r}")
        if not 0 <= start < 1:
            raise UserError(f"start must be in [0, 1), got {start}")
        self.target, self.start, self.embeddings = target, start, embeddings
        self._rounding = FakeQuantization(embeddings=embeddings)
        self._first = 0
        self._others: Any = False  # what other callbacks say of `changing`
        self._found: dict[str, int] = {}  # layers that round; empty before the start

    def first_step(self, steps: int) -> int:
        """The step before which rounding begins, of so many in all."""
        return min(round(self.start * steps), max(steps - 1, 0))

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what can't be quantized; round where a quantized model is measured after its run."""
        if stage != "fit":
            if self._found:
                self._rounding.attach(pl_module.backbone, pl_module.head)
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError("quantization-aware training needs whole weights: use one device, or -c hardware/ddp")
        _refuse_quantized(pl_module.backbone)
        quantizable(pl_module.backbone)
        self._found, self._others = {}, pl_module.changing
        pl_module.changing = _NOT_YET

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Learn how long the run is."""
        none = 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches)  # Lightning counts an epoch
        self._first = 0 if none else self.first_step(int(trainer.estimated_stepping_batches))
        if self._first == 0:
            self._begin(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Round in a resumed run that has begun to; its first pass may be a validation."""
        self._look(trainer, pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Begin with this step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Other callbacks may have settled the model, which it is not."""
        self._wait(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Likewise, before anything is kept as best."""
        self._wait(pl_module)

    def _look(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step >= self._first:
            self._begin(pl_module)
        else:
            self._wait(pl_module)

    def _wait(self, pl_module: Any) -> None:
        if not self._found and pl_module.changing != _NOT_YET:
            self._others = pl_module.changing
            pl_module.changing = _NOT_YET

    def _begin(self, pl_module: Any) -> None:
        if self._rounding.attached:
            return
        self._found = self._rounding.attach(pl_module.backbone, pl_module.head)
        if pl_module.changing == _NOT_YET:
            pl_module.changing = self._others

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Record what rounds, or say that nothing does."""
        steps = trainer.global_step - self._first
        if steps > 0:  # a run that had ended already was resumed
            self._begin(pl_module)
        if not self._found:
            rank_zero_warn(
                f"the run ended after step {trainer.global_step}, and training for int8 was to begin at step "
                f"{self._first}; let it run longer, or set an earlier start"
            )
            return
        pl_module.records["quantization"] = {
            "method": self.compression,
            "target": self.target,
            "steps": steps,
            "linear_layers": self._found["linear"],
            "embeddings": self._found["embeddings"],
        }
        rank_zero_only(print)(
            f"{self.compression}: {self._found['linear']} linear layers and {self._found['embeddings']} embeddings "
            f"were trained for int8 for {steps} steps, and are saved in fp32; export the model in int8"
        )

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Round no longer."""
        self._rounding.detach()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Round no longer."""
        self._rounding.detach()


def _refuse_quantized(backbone: Any) -> None:
    """Whether the backbone comes from a model directory that says that it was trained for int8.

    Raises:
        UserError: it does.
    """
    name = getattr(backbone, "init_args", {}).get("name")
    if name is None or not model_directory.is_model_directory(Path(name)):
        return
    record = (model_directory.read(Path(name)).get("records") or {}).get("quantization")
    if record and record.get("steps"):
        raise UserError(
            f"{name} was trained for int8 already, for {record['steps']} steps; quantize the model that it came from"
        )
