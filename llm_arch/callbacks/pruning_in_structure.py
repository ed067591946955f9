"""What callbacks that prune in structure share: which models they take, what they look at, what they record."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import nn

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.calibration import Calibration
from llm_arch.compression.gates import Gates
from llm_arch.compression.prices import Prices
from llm_arch.compression.structure import Structure
from llm_arch.compression.target import Target
from llm_arch.data.sample import sample
from llm_arch.types import UserError


def check_prunable(trainer: L.Trainer, backbone: Any) -> None:
    """Whether a run can prune its backbone in structure.

    Raises:
        UserError: the backbone is of another kind, has adapters, or its weights are spread over processes.
    """
    if not hasattr(backbone, "prune") or any("lora_" in name for name, _ in backbone.named_parameters()):
        raise UserError(
            f"{type(backbone).__name__} can't be pruned in structure; that takes a transformer (BERT, GPT-2, "
            "ModernBERT, Llama) without LoRA"
        )
    if getattr(trainer.strategy, "strategy_name", "") in ("fsdp", "fully_sharded", "deepspeed"):
        raise UserError("structured pruning needs whole weights: use one device, or -c hardware/ddp")
    anatomy(backbone.model)  # complains of other kinds


def gate(backbone: Any) -> None:
    """Put open gates on a backbone that has none."""
    if getattr(backbone, "gates", None) is None:
        backbone.gates = Gates(backbone.model).to(backbone.embeddings.weight.device)
        backbone.gates.attach(backbone.model)


def run_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole run."""
    # Lightning's estimate for no epochs is that of one.
    return 0 if trainer.max_epochs == 0 else int(trainer.estimated_stepping_batches)


def training_rows(trainer: L.Trainer, pl_module: Any, rows: int) -> Calibration:
    """So many training rows, and the backbone as it is now: a copy, without what gates have closed.

    Raises:
        UserError: there is no data module to take rows from.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        raise UserError("pruning looks at training rows: give fit a data module (datamodule=…), not data loaders")
    batches = [batch.to(pl_module.device) for batch in sample(data, rows)]
    return Calibration(alone(pl_module.backbone), pl_module.head, batches)


def alone(backbone: Any) -> Any:
    """A copy of the backbone, in eval mode, without what gates have closed, and without gates."""
    gates = getattr(backbone, "gates", None)
    if gates is None:
        return copy.deepcopy(backbone).eval()
    gates.detach()
    copied = copy.deepcopy(backbone).eval()
    gates.attach(backbone.model)
    copied.settle()
    return copied


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it a module is in eval mode; then each part is in its own again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def pruning_record(kept: Structure, target: Target | None, prices: Prices | None) -> dict[str, Any]:
    """What a model says of its pruning: how large it was and is, and how much is saved of what was to be.

    Args:
        kept: what is left of the model that the run began with.
        target: what was asked for, if anything.
        prices: by what it was measured.
    """
    before, after = Structure.whole(kept.of).sizes, kept.sizes
    found: dict[str, Any] = {
        "target": None if target is None else str(target),
        "before": {"layers": before.layers, "heads": list(before.heads), "neurons": list(before.neurons)},
        "after": {"layers": after.layers, "heads": list(after.heads), "neurons": list(after.neurons)},
    }
    if prices is not None and target is not None:
        whole, now = (prices.total(list(zip(s.heads, s.neurons, strict=True))) for s in (before, after))
        found["promised"] = {"unit": target.unit, "times": whole / now}
    return found
