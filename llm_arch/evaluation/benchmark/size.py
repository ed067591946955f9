"""How large a model is: parameters, files, and the work of a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from llm_arch.inference import Predictor
from llm_arch.inference.directory import Model
from llm_arch.inference.export.exported import Exported

_WEIGHTS = {".safetensors", ".onnx", ".pt2", ".bin"}
# The one kernel of attention that torch does not count by itself.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def parameters(model: Model) -> tuple[int, int]:
    """How many parameters backbone and head have, tied ones once, and how many of them are not 0.

    Of an exported model, those of the model it was exported from.
    """
    if isinstance(model.backbone, Exported):
        return model.backbone.parameters_before
    found = {id(p): p for p in chain(model.backbone.parameters(), model.head.parameters())}.values()
    return sum(p.numel() for p in found), sum(int(p.count_nonzero()) for p in found)


def file_bytes(directory: Path) -> tuple[int, int]:
    """Bytes of a directory's weights, and of all its files."""
    sizes = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    return sum(size for path, size in sizes.items() if path.suffix in _WEIGHTS), sum(sizes.values())


def macs(predictor: Predictor, row: Mapping[str, Any]) -> float | None:
    """Multiply-accumulates of the matrix products that predict a row; None where torch counts none.

    Args:
        predictor: the model.
        row: a row.
    """
    with FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention}) as counter:
        list(predictor.stream([row]))
    return counter.get_total_flops() / 2 or None


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))
