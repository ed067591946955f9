"""Pruning in structure: layers, heads and neurons are taken out of a model, which gets smaller and faster by them.

Parameters stay the same objects with fewer entries, so that an optimizer goes on with them once its states are cut
likewise (`cut_optimizer`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from llm_arch.compression.anatomy import Headless, LayerParts, Nothing, OnlyBias, Projection, anatomy, sizes
from llm_arch.compression.structure import Shape, Structure
from llm_arch.types import UserError

_WIDTHS = ("intermediate_size", "n_inner")  # what configurations call the number of neurons
# What attention modules have in proportion to their heads.
_PER_HEAD = ("num_attention_heads", "num_heads", "num_key_value_heads", "all_head_size", "split_size")


@dataclass
class Cut:
    """What was kept of a parameter.

    Attributes:
        parameter: as it is now.
        dim: the dimension that was cut.
        index: the kept indices of what there was, in rising order.
        size: how many there were.
    """

    parameter: nn.Parameter
    dim: int
    index: Tensor
    size: int


def prune(model: nn.Module, keep: Structure) -> list[Cut]:
    """Take out of a model, in place, what is not kept.

    An attention without heads adds only the bias of its output projection, a feed-forward part without neurons
    likewise; a layer with neither is not there any more. Gradients that there are, are cut with their parameters.

    Args:
        model: as `anatomy` takes it; dense, or pruned before.
        keep: what is kept of the model as it is now.

    Returns:
        What was kept of each parameter that is smaller now and not gone.

    Raises:
        UserError: the model is of no known kind, has layers in it that are not linear, or is of another shape than
            `keep` says.
    """
    parts = anatomy(model)
    now = Shape(len(parts), tuple(part.heads for part in parts), tuple(part.neurons for part in parts))
    if now != keep.of:
        raise UserError(f"what is to be kept is of a model of {keep.of}, but this one has {now}")
    for part in parts:
        _refuse_foreign(part)
    cuts: list[Cut] = []
    for layer, heads, neurons in zip(keep.layers, keep.heads, keep.neurons, strict=True):
        part = parts[layer]
        if len(heads) < part.heads:
            cuts += _cut_heads(part, heads)
        if len(neurons) < part.neurons:
            cuts += _cut_neurons(part, neurons)
    _keep_layers(model, keep.layers, parts)
    if isinstance(config := getattr(model, "config", None), PreTrainedConfig):
        _tell(config, keep)
    return cuts


def shape_like(model: nn.Module, structure: Structure) -> None:
    """Give a model that was built dense, by `dense_config`, the sizes of this structure, so that weights fit it.

    Raises:
        UserError: the structure is not one of this model.
    """
    prune(model, structure)


def dense_config(config: PreTrainedConfig, structure: Structure) -> PreTrainedConfig:
    """The configuration of the model before pruning, as far as it says what a model is built of.

    Args:
        config: of the pruned model.
        structure: what is kept of the dense one.

    Raises:
        UserError: the configuration does not fit the structure.
    """
    config = copy.deepcopy(config)
    of, kinds = structure.of, getattr(config, "layer_types", None)
    if config.num_hidden_layers != len(structure.layers) or (kinds is not None and len(kinds) != len(structure.layers)):
        raise UserError(
            f"config.json says {config.num_hidden_layers} layers, but {len(structure.layers)} were kept in pruning"
        )
    if kinds is not None:
        of_kept = dict(zip(structure.layers, kinds, strict=True))
        config.layer_types = [of_kept.get(layer, kinds[0]) for layer in range(of.layers)]
    config.num_hidden_layers = of.layers
    if len(set(of.neurons)) > 1:
        raise UserError(f"layers have the same number of neurons before pruning, not {sorted(set(of.neurons))}")
    for name in _WIDTHS:
        if hasattr(config, name):
            setattr(config, name, of.neurons[0])
    return config


def cut_parameter(parameter: nn.Parameter, dim: int, index: Tensor) -> Cut:
    """Keep these entries of a parameter, in place, and of its gradient.

    Args:
        parameter: stays the same object.
        dim: along which dimension.
        index: (K,) what is kept.
    """
    size, gradient, where = parameter.shape[dim], parameter.grad, index.to(parameter.device)
    parameter.grad = None
    parameter.data = parameter.detach().index_select(dim, where)
    if gradient is not None:
        parameter.grad = gradient.index_select(dim, where)
    return Cut(parameter, dim, index, size)


@torch.no_grad()
def cut_optimizer(optimizer: Optimizer, cuts: Sequence[Cut], gone: Sequence[nn.Parameter]) -> None:
    """Let an optimizer go on after pruning with the states of what was kept.

    Args:
        optimizer: any whose states are as large as their parameters, or 1 in some dimensions.
        cuts: from `prune`.
        gone: parameters that are no longer there; they leave the groups.

    Raises:
        UserError: a state is of another shape.
    """
    for cut in cuts:
        state = optimizer.state.get(cut.parameter, {})
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            shape = list(cut.parameter.shape)
            shape[cut.dim] = cut.size
            if value.ndim != len(shape) or any(a not in (b, 1) for a, b in zip(value.shape, shape, strict=True)):
                raise UserError(
                    f"{type(optimizer).__name__} keeps {name!r} of shape {tuple(value.shape)} for a weight of shape "
                    f"{tuple(shape)}, which can't be pruned with it; take AdamW"
                )
            if value.shape[cut.dim] == cut.size:
                state[name] = value.index_select(cut.dim, cut.index.to(value.device))
    ids = {id(parameter) for parameter in gone}
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]


def _base(linear: Any) -> Any:
    """The layer within, where it has LoRA."""
    return linear.base_layer if hasattr(linear, "lora_A") else linear


def _refuse_foreign(part: LayerParts) -> None:
    for linear in (part.attention_out, part.ffn_out, *(one.linear for one in (*part.attention_in, *part.ffn_in))):
        if not isinstance(_base(linear), nn.Linear | Conv1D | OnlyBias | Nothing):
            raise UserError(
                f"{type(linear).__name__} stands where a linear layer is to be pruned; prune first, and quantize the "
                "pruned model"
            )


def _cut_heads(part: LayerParts, heads: Sequence[int]) -> list[Cut]:
    attention = part.attention
    if not heads:
        _put(part.layer, part.kind.attention_out, _only_bias(part.attention_out))
        _put(part.layer, part.kind.attention, Headless(attention, part.kind.stays))
        return []
    cuts = [cut for one in part.attention_in for cut in _cut_outputs(one, heads, part.heads)]
    for name in _PER_HEAD:
        if hasattr(attention, name):
            setattr(attention, name, getattr(attention, name) * len(heads) // part.heads)
    return cuts + _cut_inputs(part.attention_out, heads, part.head_columns)


def _cut_neurons(part: LayerParts, neurons: Sequence[int]) -> list[Cut]:
    if not neurons:
        for name in part.kind.ffn_in:
            _put(part.layer, name, Nothing())
        _put(part.layer, part.kind.ffn_out, _only_bias(part.ffn_out))
        return []
    cuts = [cut for one in part.ffn_in for cut in _cut_outputs(one, neurons, part.neurons)]
    return cuts + _cut_inputs(part.ffn_out, neurons, 1)


def _cut_outputs(projection: Projection, kept: Sequence[int], units: int) -> list[Cut]:
    """Keep the outputs of these of the units, in every block."""
    linear, base = projection.linear, _base(projection.linear)
    block = sizes(linear)[1] // projection.blocks
    starts = torch.arange(projection.blocks)[:, None] * block
    index = (starts + _columns(kept, block // units)).flatten()
    cuts = [cut_parameter(base.weight, 1 if isinstance(base, Conv1D) else 0, index)]
    if base.bias is not None:
        cuts.append(cut_parameter(base.bias, 0, index))
    added = [] if base is linear else [*linear.lora_B.values()]  # type: ignore[operator]
    cuts += [cut_parameter(one.weight, 0, index) for one in added]
    for one in (linear, base, *added):
        setattr(one, "nf" if isinstance(one, Conv1D) else "out_features", len(index))
    return cuts


def _cut_inputs(linear: Any, kept: Sequence[int], columns: int) -> list[Cut]:
    """Keep the inputs that come from these units."""
    base, index = _base(linear), _columns(kept, columns)
    added = [] if base is linear else [*linear.lora_A.values()]
    for one in (linear, base, *added):
        setattr(one, "nx" if isinstance(one, Conv1D) else "in_features", len(index))
    cuts = [cut_parameter(base.weight, 0 if isinstance(base, Conv1D) else 1, index)]
    return cuts + [cut_parameter(one.weight, 1, index) for one in added]


def _columns(units: Sequence[int], columns: int) -> Tensor:
    return (torch.tensor(units)[:, None] * columns + torch.arange(columns)).flatten()


def _only_bias(linear: Any) -> OnlyBias:
    base = _base(linear)
    return OnlyBias(base.bias, sizes(base)[1], base.weight)


def _put(layer: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(layer.get_submodule(parent), child, module)


def _keep_layers(model: nn.Module, layers: Sequence[int], parts: Sequence[LayerParts]) -> None:
    below = parts[0].layer
    stack = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and m[0] is below)
    for layer in sorted(set(range(len(parts))) - set(layers), reverse=True):
        del stack[layer]
    for number, left in enumerate(stack):
        for module in left.modules():  # attention asks a cache by its number
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # type: ignore[assignment]


def _tell(config: PreTrainedConfig, keep: Structure) -> None:
    """Write into a configuration what it can say of the pruned model."""
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(keep.layers)
    if kinds is not None:
        config.layer_types = [kinds[layer] for layer in keep.layers]
    for name in _WIDTHS:
        if hasattr(config, name):
            setattr(config, name, max(keep.sizes.neurons))
