"""Where the parts that can be pruned lie in a model of transformers.

A model is known by what its layers are called, so that ELECTRA counts as BERT and Mistral as Llama. A layer may have
been pruned already: sizes are read from the weights, not from the configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_arch.types import UserError


class Projection(NamedTuple):
    """A linear layer whose outputs go to attention units or neurons.

    Attributes:
        linear: the layer.
        blocks: equal blocks of outputs one behind another, each with its part of every unit: 3 where queries, keys
            and values are one matrix.
    """

    linear: nn.Module
    blocks: int


@dataclass(frozen=True)
class LayerParts:
    """A transformer layer, and what of it can be pruned.

    Attributes:
        layer: the layer.
        heads: attention units: query heads, or where some share keys and values, groups of them with these.
        head_columns: input columns of `attention_out` for each unit.
        neurons: neurons of the feed-forward part.
        attention_out: output projection of the attention: a linear layer (D outputs), or `OnlyBias` without heads.
        ffn_out: output projection of the feed-forward part, likewise.
        attention: the module whose forward attends.
        attention_in: what gives queries, keys and values; empty without heads.
        ffn_in: what gives the neurons; of `Nothing` without neurons.
        kind: the names of all these.
    """

    layer: nn.Module
    heads: int
    head_columns: int
    neurons: int
    attention_out: nn.Module
    ffn_out: nn.Module
    attention: nn.Module
    attention_in: tuple[Projection, ...]
    ffn_in: tuple[Projection, ...]
    kind: Kind


class Kind(NamedTuple):
    """What a family of models calls its parts, by their names within a layer."""

    name: str
    attention: str
    attention_in: dict[str, int]  # with the number of blocks
    attention_out: str
    ffn_in: dict[str, int]
    ffn_out: str
    stays: tuple[str, ...]  # within an attention that has lost its heads, in the order of the computation


KINDS = (
    Kind(
        "BERT, RoBERTa, ELECTRA",
        "attention.self",
        {f"attention.self.{name}": 1 for name in ("query", "key", "value")},
        "attention.output.dense",
        {"intermediate.dense": 1},
        "output.dense",
        (),
    ),
    Kind(
        "GPT-2", "attn", {"attn.c_attn": 3}, "attn.c_proj", {"mlp.c_fc": 1}, "mlp.c_proj", ("c_proj", "resid_dropout")
    ),
    Kind("ModernBERT", "attn", {"attn.Wqkv": 3}, "attn.Wo", {"mlp.Wi": 2}, "mlp.Wo", ("Wo", "out_drop")),
    Kind(
        "Llama, Mistral, Qwen2",
        "self_attn",
        {f"self_attn.{name}_proj": 1 for name in ("q", "k", "v")},
        "self_attn.o_proj",
        {"mlp.gate_proj": 1, "mlp.up_proj": 1},
        "mlp.down_proj",
        ("o_proj",),
    ),
)


class Nothing(nn.Module):
    """A projection to nothing: (…, D) → (…, 0)."""

    in_features = out_features = 0

    def forward(self, states: Tensor) -> Tensor:
        """No column of the states."""
        return states[..., :0]


class OnlyBias(nn.Module):
    """What is left of a projection of nothing: (…, 0) → (…, D), the bias, or zeros without one.

    Args:
        bias: (D,), the projection's own parameter, or None.
        size: D.
        like: a tensor whose dtype and device zeros shall have.
    """

    in_features = 0

    def __init__(self, bias: nn.Parameter | None, size: int, like: Tensor) -> None:
        super().__init__()
        self.out_features = size
        self.bias = bias
        if bias is None:
            self.register_buffer("zeros", torch.zeros(size, dtype=like.dtype, device=like.device), persistent=False)

    def forward(self, nothing: Tensor) -> Tensor:
        """The bias at every place."""
        values = self.zeros if self.bias is None else self.bias
        assert isinstance(values, Tensor)
        # A copy, since a view of a parameter asks for gradients even in inference mode, at which torch's counter of
        # operations stumbles.
        return values.to(nothing.dtype).expand(*nothing.shape[:-1], self.out_features).clone()


class Headless(nn.Module):
    """What is left of an attention without heads: its output projection and dropout, where these were its own.

    Args:
        attention: the attention it takes the place of, with its `OnlyBias` in place.
        parts: the names of what stays in it, in the order of the computation.
    """

    def __init__(self, attention: nn.Module, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.layer_idx = getattr(attention, "layer_idx", None)
        self.parts = parts
        for name in parts:
            setattr(self, name, getattr(attention, name))
        self.train(attention.training)

    def forward(self, hidden_states: Tensor, *args: Any, cache: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
        """(B, L, D) → (B, L, 0), or (B, L, D) where the output projection is part of it; and no weights."""
        if cache is not None:  # one that counts how much it has read looks at the first layer
            mark = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(mark, mark, self.layer_idx)
        states = hidden_states[..., :0]
        for name in self.parts:
            states = getattr(self, name)(states)
        return states, None


def anatomy(model: nn.Module) -> list[LayerParts]:
    """The layers of a model of transformers, lowest first, with their parts.

    Args:
        model: without a head or with one; dense, pruned, or with LoRA.

    Raises:
        UserError: the model is of no kind that is known here.
    """
    for stack in model.modules():
        if not isinstance(stack, nn.ModuleList) or len(stack) == 0:
            continue
        for kind in KINDS:
            found = [_parts(layer, kind) for layer in stack]
            parts = [part for part in found if part is not None]
            if len(parts) == len(found):
                return parts
    config = getattr(model, "config", None)
    name = getattr(config, "model_type", None) or type(model).__name__
    known = "; ".join(kind.name for kind in KINDS)
    raise UserError(f"{name}: its layers are of no kind that can be pruned in structure; these are: {known}")


def sizes(linear: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(linear, Conv1D):
        return int(linear.nx), int(linear.nf)
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]


def _parts(layer: nn.Module, kind: Kind) -> LayerParts | None:
    """The layer's parts if it is of this kind."""
    attention = _at(layer, kind.attention)
    out, ffn_out = _at(layer, kind.attention_out), _at(layer, kind.ffn_out)
    ffn_in = tuple(Projection(module, n) for name, n in kind.ffn_in.items() if (module := _at(layer, name)))
    if attention is None or len(ffn_in) < len(kind.ffn_in) or not (_is_linear(out) and _is_linear(ffn_out)):
        return None
    assert out is not None
    assert ffn_out is not None
    neurons = sizes(ffn_out)[0]
    if isinstance(attention, Headless):
        return LayerParts(layer, 0, 0, neurons, out, ffn_out, attention, (), ffn_in, kind)
    inputs = tuple(Projection(module, n) for name, n in kind.attention_in.items() if (module := _at(layer, name)))
    if len(inputs) < len(kind.attention_in) or not all(_is_linear(one.linear) for one in (*inputs, *ffn_in)):
        return None
    size = getattr(attention, "attention_head_size", None) or getattr(attention, "head_dim", None)
    if not isinstance(size, int) or not _attends_by_heads(attention, [*(one.linear for one in inputs), out], size):
        return None
    heads = sizes(inputs[-1].linear)[1] // inputs[-1].blocks // size
    return LayerParts(layer, heads, sizes(out)[0] // heads, neurons, out, ffn_out, attention, inputs, ffn_in, kind)


def _attends_by_heads(attention: nn.Module, linear: list[nn.Module], size: int) -> bool:
    """Whether an attention has no weights but its projections, and such as all heads share (Qwen3's norms)."""
    known = {id(p) for one in linear for p in one.parameters()}
    return all(math.prod(p.shape) == size for p in attention.parameters() if id(p) not in known)


def _is_linear(module: nn.Module | None) -> bool:
    return module is not None and (isinstance(module, Conv1D) or hasattr(module, "in_features"))


def _at(layer: nn.Module, name: str) -> nn.Module | None:
    found: Any = layer
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None
