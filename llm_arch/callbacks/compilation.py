"""The transformer through `torch.compile`, for training on a GPU."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from llm_arch.heads.language import VocabularyHead
from llm_arch.types import UserError


class Compile(L.Callback):
    """Compile the transformer of the backbone, and a language model's loss, while a run trains.

    The first step takes about a minute; it pays in runs of many steps. One graph serves batches of all sizes. Weights,
    checkpoints and what is saved stay what they are.

    Args:
        backend: of `torch.compile`.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Mark what is to be compiled; torch compiles it when it is first called."""
        if stage != "fit":
            return
        model = getattr(pl_module.backbone, "model", None)
        if not isinstance(model, nn.Module):
            raise UserError(
                f"Compile is for transformers, and {type(pl_module.backbone).__name__} is none; leave it out"
            )
        device = trainer.strategy.root_device.type
        if device != "cuda":
            raise UserError(
                f"Compile is for GPUs, and this run is on {device}, where attention and dropout have code of their "
                "own; leave it out"
            )
        if getattr(trainer.strategy, "strategy_name", "") in ("fsdp", "fully_sharded", "deepspeed"):
            raise UserError("Compile does not go with weights that are spread over processes; take -c hardware/ddp")
        model.compile(dynamic=True, backend=self.backend)
        if isinstance(pl_module.head, VocabularyHead):
            pl_module.head.compiled = True

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Leave a plain model behind."""
        model = getattr(pl_module.backbone, "model", None)
        if stage == "fit" and isinstance(model, nn.Module):
            model._compiled_call_impl = None
            if isinstance(pl_module.head, VocabularyHead):
                pl_module.head.compiled = False
