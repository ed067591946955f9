"""Which part of a backbone is not trained."""

from __future__ import annotations

from typing import Literal

from torch import nn

from llm_arch.types import Backbone, UserError

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
        stacked = {id(p) for layer in layers for p in layer.parameters()}
        # What lies outside the stack is embeddings below it, or a final norm above, which belongs to the top.
        final = {id(p) for name, m in backbone.named_modules() if _is_final_norm(name) for p in m.parameters()}
        for parameter in backbone.parameters():
            if id(parameter) not in above and not (id(parameter) in final and id(parameter) not in stacked):
                parameter.requires_grad_(False)
    else:
        raise UserError(f"model.freeze must be none, backbone, embeddings or a number of layers, got {what!r}")


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _is_final_norm(name: str) -> bool:
    return name.rpartition(".")[2] in ("norm", "ln_f", "final_norm", "final_layer_norm")
