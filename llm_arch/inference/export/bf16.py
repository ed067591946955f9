"""A model directory that is served by torch in bfloat16: a mark in its record says so, its files stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llm_arch.types import Backbone, Hidden, UserError

_MARK = "served_in"
_DTYPE = "bfloat16"


def marked(record: Mapping[str, Any]) -> bool:
    """Whether a model directory's record says that its backbone is served in bfloat16."""
    return bool(record["backbone"].get(_MARK) == _DTYPE)


def mark(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with that said."""
    return {**record, "backbone": {**record["backbone"], _MARK: _DTYPE}}


def serve_in_bf16(backbone: Backbone) -> None:
    """Let a loaded backbone compute in bfloat16, and give its states in fp32; the head stays as it is.

    Buffers keep their type: rotary positions are angles, which bfloat16 can't tell apart further on in a text.
    """
    for parameter in backbone.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
    backbone.register_forward_pre_hook(_refuse_training)
    backbone.register_forward_hook(_in_fp32)


def _refuse_training(backbone: nn.Module, given: Any) -> None:
    if backbone.training and torch.is_grad_enabled():
        raise UserError(
            "this model is served in bfloat16, whose steps are too coarse to train with; name the model it was made of"
        )


def _in_fp32(backbone: nn.Module, given: Any, found: Hidden) -> Hidden:
    layers = None if found.layers is None else tuple(states.float() for states in found.layers)
    return Hidden(found.last_TD.float(), layers)
