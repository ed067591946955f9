"""The linear layers of a model, by name: those that adapters go beside, and those whose weights are pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_arch.types import UserError


def stacked_linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers within stacked layers, by their full names: no embeddings, no pooler, no head."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return {name: module for name, module in found.items() if _number_at(name) is not None}


def fitting(layers: Mapping[str, nn.Module], patterns: Iterable[str], key: str) -> dict[str, nn.Module]:
    """Those of the layers whose names end as one of the patterns says.

    Args:
        layers: by their full names.
        patterns: ends of full names (`query`, `self.query`), with * for any letters.
        key: what the user set, for the message.

    Raises:
        UserError: naming a pattern that fits none of the layers, and what there is.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in layers if fnmatchcase(f".{name}", f"*.{pattern}")}
        if not found:
            raise UserError(f"{key}: {pattern!r} fits no linear layer; {known(layers)}")
        chosen |= found
    return {name: module for name, module in layers.items() if name in chosen}


def kind_of(name: str) -> str:
    """A layer's name without what tells one layer of the stack from the next."""
    place = _number_at(name)
    return name if place is None else ".".join(name.split(".")[place + 1 :]) or name


def known(layers: Mapping[str, nn.Module]) -> str:
    """What there is, each kind once, as the end of a message."""
    kinds = dict.fromkeys(map(kind_of, layers))
    return f"there are: {', '.join(kinds)}" if kinds else "the backbone has none in stacked layers"


def matrix(module: nn.Module, values: Tensor | None = None) -> Tensor:
    """A layer's weight, or something of its shape, as (outputs, inputs): a view, also of GPT-2's Conv1D.

    Args:
        module: a linear layer.
        values: None for its weight.
    """
    if values is None:
        assert isinstance(module.weight, Tensor)
        values = module.weight.detach()
    return values.T if isinstance(module, Conv1D) else values


def _number_at(name: str) -> int | None:
    """Where the last number in a name stands, which tells the layer of a stack that it belongs to."""
    numbers = [i for i, part in enumerate(name.split(".")) if part.isdecimal()]
    return numbers[-1] if numbers else None
