"""What a compressed model directory says of itself: how large and how good the model was before, and is now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


def methods(parts: Sequence[Any]) -> list[str]:
    """How a run compresses, by those of its callbacks and loss terms that do.

    Such a class says what it does in an attribute `compression`, such as `structured pruning` or `distillation`.

    Args:
        parts: callbacks and loss terms.
    """
    found = (getattr(part, "compression", None) for part in parts)
    return list(dict.fromkeys(str(name) for name in found if name))


def size_of(model: nn.Module) -> dict[str, int]:
    """Parameters of a model (tied ones once), those that are not zero, and the bytes that they take."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "nonzero_parameters": sum(int(torch.count_nonzero(p)) for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def bytes_of(directory: Path) -> int:
    """Bytes of the weights in a model directory."""
    return sum(path.stat().st_size for path in directory.rglob("*.safetensors"))


def compression_record(
    before: dict[str, Any], after: dict[str, Any], metrics: dict[str, Any], major: str, recipe: str, used: list[str]
) -> dict[str, Any]:
    """The entry `compression` of a model directory's `records`.

    Args:
        before: sizes of the model that was compressed.
        after: sizes of what came of it; its bytes are those of the files, once they are written.
        metrics: as in metrics.json: `split`, and numbers `before` and `after`.
        major: name of the metric that the head goes by.
        recipe: what said how to compress.
        used: the methods.
    """

    def with_metric(size: dict[str, Any], when: str) -> dict[str, Any]:
        value = (metrics.get(when) or {}).get(major)
        return size if value is None else {**size, major: value}

    return {
        "methods": used,
        "recipe": recipe,
        "split": metrics.get("split"),
        "before": with_metric(before, "before"),
        "after": with_metric(after, "after"),
    }


def with_bytes(records: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Records of a model whose weights lie in a folder by now, so that their bytes can be told."""
    if "compression" not in records:
        return records
    found = records["compression"]
    return {**records, "compression": {**found, "after": {**found["after"], "bytes": bytes_of(folder)}}}
