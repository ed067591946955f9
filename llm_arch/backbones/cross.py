"""A decoder's attention to what an encoder has read, both flat batches.

Legend: T tokens of the decoder, S of the encoder, B sequences, L longest of the decoder, M of the encoder, H heads,
d head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llm_arch.backbones.dropout import drop
from llm_arch.backbones.packed import PackedMap, packed_attention

NAME = "llm_arch_joined"


class CrossMap(NamedTuple):
    """Where the sequences of both lie; a decoder's layers are called with it.

    Attributes:
        own: the decoder's.
        read: the encoder's, in the same order.
    """

    own: PackedMap
    read: PackedMap


def cross_attention(
    query_THd: Tensor, key_SHd: Tensor, value_SHd: Tensor, maps: CrossMap, scaling: float, dropout: float
) -> Tensor:
    """(T, H, d): each token attends all that was read for its sequence, padded inside this call only."""
    query_BHLd = maps.own.pad(query_THd).transpose(1, 2)
    key_BHMd, value_BHMd = (maps.read.pad(x).transpose(1, 2) for x in (key_SHd, value_SHd))
    seen = maps.read.mask(False, None)
    if dropout > 0 and query_THd.device.type == "cpu":
        # What torch's kernel does too where there is dropout, with cheaper random numbers.
        scores_BHLM = (query_BHLd @ key_BHMd.transpose(2, 3)).mul_(scaling)
        if seen is not None:
            scores_BHLM = scores_BHLM.masked_fill(~seen, float("-inf"))
        weights_BHLM = scores_BHLM.softmax(-1, dtype=torch.float32).to(value_SHd.dtype)
        out_BHLd = drop(weights_BHLM, dropout) @ value_BHMd
    else:
        out_BHLd = scaled_dot_product_attention(
            query_BHLd, key_BHMd, value_BHMd, attn_mask=seen, dropout_p=dropout, scale=scaling
        )
    return maps.own.unpad(out_BHLd.transpose(1, 2))


def joined_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedMap | CrossMap | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """`packed_attention` for the layers of an encoder and a decoder: what is not causal in a decoder attends across."""
    if not isinstance(packed, CrossMap):
        return packed_attention(module, query, key, value, attention_mask, scaling, dropout, packed=packed, **extra)
    if module.is_causal:
        own = packed.own
        return packed_attention(module, query, key, value, attention_mask, scaling, dropout, packed=own, **extra)
    query_THd, key_SHd, value_SHd = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cross_attention(query_THd, key_SHd, value_SHd, packed, scaling, dropout).unsqueeze(0), None


# No mask function is registered beside it: transformers then builds no mask and passes None.
AttentionInterface.register(NAME, joined_attention)
