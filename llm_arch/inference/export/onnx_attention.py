"""Attention as nodes of an ONNX graph, in place of the some twenty that torch writes for each layer.

A mask is added to the scores as a finite number: where nothing at all may be attended, which is at padding alone, all
is attended alike, so that no softmax gives NaN and none needs to be looked for.

Legend: B sequences, H heads, K heads of keys and values, L positions, d head size.
"""

# No `from __future__ import annotations`: torch reads the types of `_fused` and `_plain` to tell tensors from numbers.

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import FLOAT, opset20, values

op: Any = opset20

_optional = OpSchema.FormalParameterOption.Optional
_multi_head_attention = values.Op(
    values.Opset("com.microsoft", 1),
    "MultiHeadAttention",
    OpSchema(
        "MultiHeadAttention",
        "com.microsoft",
        1,
        inputs=[
            OpSchema.FormalParameter("query", "T"),
            *(
                OpSchema.FormalParameter(name, "T", param_option=_optional)
                for name in ("key", "value", "bias", "key_padding_mask", "attention_bias")
            ),
        ],
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            OpSchema.Attribute("num_heads", OpSchema.AttrType.INT),
            OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT),
            OpSchema.Attribute("unidirectional", OpSchema.AttrType.INT),
        ],
    ),
)
_NEVER = -1e30  # far below any score, and a number of fp32 still when a score is added


def translations(fused: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: how attention is written.

    Args:
        fused: as the one node that ONNX Runtime has for it, which is none of the ONNX standard; else as products and a
            softmax, which every runtime knows.
    """
    return {torch.ops.aten.scaled_dot_product_attention.default: _fused if fused else _plain}


def _fused(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    attn_mask: FLOAT | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FLOAT:
    """(B, H, L, d) by MultiHeadAttention, whose operands are (B, L, H·d); torch's arguments."""
    _, heads, _, size = _shape(query)
    key, value = _repeated(key, heads), _repeated(value, heads)
    query, key, value = (_in_rows(one) for one in (query, key, value))
    bias = None
    if attn_mask is not None:
        bias = _bias(attn_mask)
        if _shape(attn_mask)[2] == 1:  # the node wants a row for every query
            bias = op.Expand(bias, op.Concat(_ints(1, 1), op.Shape(query, start=1, end=2), _ints(1), axis=0))
    found = _multi_head_attention(
        query,
        key,
        value,
        None,
        None,
        bias,
        num_heads=heads,
        scale=size**-0.5 if scale is None else scale,
        unidirectional=int(is_causal),
    )
    return op.Transpose(op.Reshape(found, _ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])


def _plain(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    attn_mask: FLOAT | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FLOAT:
    """(B, H, L, d) by two products and a softmax; torch's arguments."""
    _, heads, _, size = _shape(query)
    key, value = _repeated(key, heads), _repeated(value, heads)
    factor = op.Constant(value_float=size**-0.5 if scale is None else scale)
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, _bias(attn_mask))
    if is_causal:
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(scores))
        scores = op.Where(op.Cast(op.Trilu(ones, upper=0), to=9), scores, op.Constant(value_float=_NEVER))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _shape(value: Any) -> Any:
    return value.shape


def _bias(mask: Any) -> Any:
    """What a mask adds to the scores."""
    never = op.Constant(value_float=_NEVER)
    if mask.dtype.name == "BOOL":
        return op.Where(mask, op.Constant(value_float=0.0), never)
    return op.Max(mask, never)


def _repeated(states: Any, heads: int) -> Any:
    """(B, K, L, d) → (B, H, L, d): each head of keys or values for as many queries as share it."""
    _, kept, _, size = states.shape
    if kept == heads:
        return states
    groups = op.Expand(op.Unsqueeze(states, _ints(2)), _ints(1, 1, heads // kept, 1, 1))
    return op.Reshape(groups, _ints(0, heads, -1, size))


def _in_rows(states: Any) -> Any:
    """(B, H, L, d) → (B, L, H·d); what the model cut into heads just before is taken whole."""
    whole = _made_of(_made_of(states, "Transpose"), "Reshape")
    if whole is not None and whole.shape is not None and states.shape is not None:
        count, heads, length, size = states.shape
        if list(whole.shape) == [count, length, heads * size]:
            return whole
    return op.Reshape(op.Transpose(states, perm=[0, 2, 1, 3]), _ints(0, 0, -1))


def _made_of(value: Any, kind: str) -> Any:
    """The first input of the node that made a value, if it is one of this kind."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == kind else None


def _ints(*numbers: int) -> Any:
    return op.Constant(value_ints=list(numbers))
