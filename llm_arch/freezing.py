"""Which part of a backbone is not trained."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from llm_arch.types import Backbone, UserError

_EMBEDS = re.compile(r"embed|\bshared\b")
_FINAL_NORMS = ("norm", "ln_f", "final_norm", "final_layer_norm")

Freeze = Literal["none", "backbone", "embeddings"] | int


def freeze_backbone(backbone: Backbone, what: Freeze) -> None:
    """Switch off gradients.

    Args:
        backbone: the backbone.
        what: `none`; `backbone` for all of it; `embeddings` for the token embeddings; or a number of layers from below
            together with everything under them.
    """
    if what == "none":
        return
    if what == "backbone":
        _freeze(backbone)
    elif what == "embeddings":
        _freeze(backbone.embeddings)
    elif isinstance(what, int) and not isinstance(what, bool):
        layers = backbone.layers
        if not 1 <= what <= len(layers):
            raise UserError(f"model.freeze must be between 1 and {len(layers)} layers, got {what}")
        above = {id(p) for layer in layers[what:] for p in layer.parameters()}
        # What lies outside the stack is embeddings below it, or a final norm above, which belongs to the top.
        final = {id(p) for m in _beside(backbone, layers) for p in m.parameters()}
        if backbone.encoder_decoder:  # of two stacks much lies beside both: only embeddings are below
            inside = {id(p) for layer in layers for p in layer.parameters()}
            final = {
                id(p) for name, p in backbone.named_parameters() if id(p) not in inside and not _EMBEDS.search(name)
            }
        for parameter in backbone.parameters():
            if id(parameter) not in above and id(parameter) not in final:
                parameter.requires_grad_(False)
    else:
        raise UserError(f"model.freeze must be none, backbone, embeddings or a number of layers, got {what!r}")


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _beside(backbone: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """Norms beside the stack: one inside the embeddings (ModernBERT's) lies below it."""
    inside = {id(m) for layer in layers for m in layer.modules()}
    stacks = [m for m in backbone.modules() if any(child is layers[0] for child in m.children())]
    parents = [m for m in backbone.modules() if any(child is stack for stack in stacks for child in m.children())]
    return [
        child
        for parent in [*stacks, *parents]
        for name, child in parent.named_children()
        if name in _FINAL_NORMS and id(child) not in inside
    ]
