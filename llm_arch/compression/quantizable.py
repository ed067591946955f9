"""Which layers of a model run in int8, and why others can't."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_arch.types import Backbone, UserError


def quantizable(backbone: Backbone) -> tuple[list[nn.Module], list[nn.Module]]:
    """The linear layers, and the embeddings, of a backbone that can run in int8.

    Raises:
        UserError: it has layers that can't, or no linear layer.
    """
    if backbone.encoder_decoder:
        raise UserError(
            "an encoder–decoder writes texts in a loop, which does not run in int8; quantize an encoder or a decoder"
        )
    if any("lora_" in name for name, _ in backbone.named_parameters()):
        raise UserError("adapters are added to the weights in the end: save the model, and quantize that")
    layers: list[nn.Module] = []
    tables: list[nn.Module] = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.RNNBase | nn.Conv1d | nn.Conv2d):
            raise UserError(
                f"{name} is an {type(module).__name__}, and only linear layers and embeddings are trained for int8; "
                "take a transformer (BERT, GPT-2, ModernBERT, Llama) or a TextCNN"
            )
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            continue
        if type(module.weight) is not nn.Parameter or not module.weight.is_floating_point():
            raise UserError(f"{name} is quantized already; take the model that it was")
        if isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"):
            raise UserError(f"{name} multiplies what it looks up, which is not trained for int8; take another backbone")
        (tables if isinstance(module, nn.Embedding) else layers).append(module)
    if not layers:
        raise UserError(f"{type(backbone).__name__} has no linear layer to quantize")
    return layers, tables
