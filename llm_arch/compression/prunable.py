"""Which layers of a model can have some of their weights made zero, and why others can't."""

from __future__ import annotations

from torch import Tensor, nn

from llm_arch.compression.linear_layers import fitting, known, stacked_linear_layers
from llm_arch.types import UserError


def prunable_layers(
    model: nn.Module, backbone: nn.Module, patterns: list[str] | None
) -> tuple[dict[str, nn.Module], list[str]]:
    """The linear layers whose weights are pruned, by their full names, and those left out.

    Left out are layers that share their weight with embeddings. Of layers that share one weight the first stands for
    all.

    Args:
        model: everything, embeddings included.
        backbone: the part of it with stacked layers.
        patterns: ends of names, with * for any letters; None for every linear layer in stacked layers.

    Raises:
        UserError: there is nothing to prune, a pattern fits nothing, or the weights are adapted or quantized.
    """
    layers = stacked_linear_layers(backbone)
    if any("lora_" in name for name, _ in backbone.named_parameters()):
        raise UserError(
            "adapters are added to the weights in the end, which fills zeros up: save the model, and prune that"
        )
    if not layers or patterns == []:
        what = "modules is empty" if layers else f"{type(backbone).__name__} has no linear layer to prune"
        raise UserError(f"{what}; {known(layers)}")
    chosen = layers if patterns is None else fitting(layers, patterns, "modules")
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
    own: dict[int, str] = {}
    tied = []
    for name, layer in chosen.items():
        weight = layer.weight
        if not isinstance(weight, Tensor) or type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise UserError(f"{name} is quantized already; prune first, then quantize")
        if id(weight) in tables:
            tied.append(name)
        else:
            own.setdefault(id(weight), name)
    if not own:
        raise UserError(f"there is nothing to prune: {', '.join(tied)} shares its weight with embeddings")
    return {name: chosen[name] for name in own.values()}, tied
