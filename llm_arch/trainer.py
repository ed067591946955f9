"""Lightning's Trainer with this project's defaults."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import CheckpointIO, Precision
from lightning.pytorch.strategies import Strategy, StrategyRegistry

from llm_arch.allocator import keep_freed_memory
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.guard import Guard
from llm_arch.callbacks.preemption import Preemption
from llm_arch.checkpoints import DurableCheckpointIO
from llm_arch.fit_loop import FitLoop
from llm_arch.fully_sharded import FullySharded
from llm_arch.precision import check_precision, choose_precision, use_fast_fp32
from llm_arch.types import UserError

StrategyRegistry.register(FullySharded.strategy_name, FullySharded, description="FSDP2")


class Trainer(L.Trainer):
    """`lightning.Trainer`, where what is left out is chosen well.

    Args:
        precision: as in Lightning; None takes bf16 where the device has it, else fp32, and says so.
        accelerator: as in Lightning.
        max_epochs: epochs.
        gradient_clip_val: largest norm of the gradient; None for no clipping.
        logger: as in Lightning; a CSV file in the output directory is always written unless False.
        callbacks: as in Lightning; checkpoints of the last and the best state, early stopping on the head's major
            metric, a guard against numbers that are none, a way to stop at a signal, and a progress bar are added where
            none of their kind is given.
        default_root_dir: the output directory; None for the working directory.
        **options: everything else `lightning.Trainer` takes.
    """

    shows_loss = True  # `progress_bar_metrics` does

    def __init__(
        self,
        *,
        precision: str | int | None = None,
        accelerator: str = "auto",
        max_epochs: int | None = None,
        gradient_clip_val: float | None = 1.0,
        logger: Logger | list[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        default_root_dir: str | None = None,
        **options: Any,
    ) -> None:
        root = Path(default_root_dir or ".")
        if logger is not False and not options.get("barebones"):
            given = [logger] if isinstance(logger, Logger) else list(logger) if isinstance(logger, list) else []
            has_csv = any(isinstance(one, CSVLogger) for one in given)
            logger = given if has_csv else [CSVLogger(root, name="logs", version=""), *given]
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        callbacks += _missing_callbacks(callbacks, options)
        if max_epochs is None and options.get("max_steps", -1) == -1 and options.get("max_time") is None:
            max_epochs = 3
        self.precision_reason = "as asked"
        if precision is not None:
            check_precision(precision)
        plugins = options.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if precision is None and not any(isinstance(one, Precision | str) for one in plugins):
            precision, self.precision_reason = choose_precision(_device_kind(accelerator))
            if precision == "32-true" and _device_kind(accelerator) == "cpu":
                use_fast_fp32()
        if _device_kind(accelerator) == "cpu":
            keep_freed_memory()
        options["enable_model_summary"] = bool(options.get("enable_model_summary"))
        strategy = options.get("strategy", "auto")
        if not isinstance(strategy, Strategy):
            _check_strategy(str(strategy))
            if not any(isinstance(one, CheckpointIO) for one in plugins):
                plugins.append(DurableCheckpointIO())
        options["plugins"] = plugins or None
        # The batches are already spread over the ranks.
        options["use_distributed_sampler"] = False
        super().__init__(
            precision=precision,  # type: ignore[arg-type]
            accelerator=accelerator,
            max_epochs=max_epochs,
            gradient_clip_val=gradient_clip_val,
            logger=logger,
            callbacks=callbacks,
            default_root_dir=default_root_dir,
            **options,
        )
        steps = self.fit_loop.epoch_loop
        self.fit_loop = FitLoop(self, min_epochs=self.min_epochs, max_epochs=self.max_epochs)
        self.fit_loop.epoch_loop = steps

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What a progress bar shows; the loss is read when the bar is drawn, and not in every step."""
        loss = self.callback_metrics.get("train/loss")
        return ({} if loss is None else {"train/loss": float(loss)}) | super().progress_bar_metrics


def _check_strategy(name: str) -> None:
    if name.startswith("deepspeed") and find_spec("deepspeed") is None:
        raise UserError(
            f"strategy {name} needs the package deepspeed: pip install deepspeed, or take -c hardware/fsdp instead, "
            "which needs nothing else"
        )


def _device_kind(accelerator: str) -> str:
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator


def _missing_callbacks(given: list[Callback], options: dict[str, Any]) -> list[Callback]:
    added: list[Callback] = []
    if options.get("barebones"):
        return added

    def lacks(kind: type) -> bool:
        return not any(isinstance(c, kind) for c in given)

    if options.get("enable_progress_bar", True) is not False and lacks(ProgressBar):
        added.append(RichProgressBar(refresh_rate=10))
    if options.get("fast_dev_run"):
        return added
    if options.get("enable_checkpointing", True) is not False and lacks(LightningCheckpoint):
        added.append(Checkpoint())
    if lacks(LightningEarlyStopping):
        added.append(EarlyStopping())
    added += [kind() for kind in (Guard, Preemption) if lacks(kind)]
    return added
