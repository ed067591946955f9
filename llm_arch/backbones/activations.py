"""Activations of transformers that are written out in several passes, in one."""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_activations(model: nn.Module) -> None:
    """Put torch's tanh approximation of GELU where a model has its formula; the same numbers to rounding.

    GPT-2 computes x³, tanh, two sums and three products one after another (Hendrycks & Gimpel 2016), which takes about
    a tenth of a step.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
