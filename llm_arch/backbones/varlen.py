"""Packed attention on a GPU in half precision: a flash kernel for long sequences, our own for short ones.

Legend: T tokens, B sequences, H heads, K key/value heads, d head size.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llm_arch.types.batch import SHORT

if TYPE_CHECKING:
    from llm_arch.backbones.packed import PackedMap

_HEAD_SIZES = (16, 32, 64, 128)
Parts = tuple[Tensor, Tensor, Tensor]  # query, key and value


class _Rule(NamedTuple):
    causal: bool
    window: int | None
    scaling: float
    dropout: float


def varlen_serves(query: Tensor) -> bool:
    """Whether attention of this query, (1, H, T, d), needs no padding."""
    # The flash kernel knows half precision only.
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256


@cache
def has_own_kernel() -> bool:
    """Whether our kernel runs on this machine's GPU; loads it where it does."""
    if find_spec("triton") is None or torch.cuda.get_device_capability() < (8, 0):
        return False
    from llm_arch.backbones import short_attention  # noqa: F401  # imports Triton, which not every machine has

    return True


def varlen_attention(
    query_THd: Tensor,
    key_TKd: Tensor,
    value_TKd: Tensor,
    packed: PackedMap,
    causal: bool,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention within sequences.

    Args:
        query_THd: queries.
        key_TKd: keys.
        value_TKd: values.
        packed: where the sequences lie.
        causal: whether a token sees only what came before it.
        window: positions further apart than this do not attend each other (the distance itself excluded).
        scaling: factor on the scores; 1/√d by default.
        dropout: probability on the attention weights.

    Returns:
        (T, H, d).
    """
    parts = query_THd, key_TKd, value_TKd
    rule = _Rule(causal, window, query_THd.shape[-1] ** -0.5 if scaling is None else scaling, dropout)
    own = packed.own_kernel and query_THd.shape == key_TKd.shape and query_THd.shape[-1] in _HEAD_SIZES
    attend_short = _own if own and dropout < 1 and (window is None or window >= SHORT) else _flash
    first, tokens = packed.short_from
    if first == packed.size:
        return _flash(parts, packed.borders, packed.longest, rule)
    if first == 0:
        return attend_short(parts, packed.borders, packed.longest, rule)
    # The flash kernel starts blocks for the longest sequence in each of them: most of their time where few are long.
    (q, q_), (k, k_), (v, v_) = (part.split([tokens, packed.tokens - tokens]) for part in parts)
    long = _flash((q, k, v), packed.borders[: first + 1], packed.longest, rule)
    return torch.cat([long, attend_short((q_, k_, v_), packed.borders[first:] - tokens, SHORT, rule)])


def _own(parts: Parts, borders: Tensor, longest: int, rule: _Rule) -> Tensor:
    seed = borders.new_zeros(1, dtype=torch.long)
    if rule.dropout > 0:
        seed = torch.randint(2**62, (1,), device=borders.device)
    out: Tensor = torch.ops.llm_arch.short_attention(*parts, borders, seed, rule.dropout, rule.scaling, rule.causal)
    return out


def _flash(parts: Parts, borders: Tensor, longest: int, rule: _Rule) -> Tensor:
    reach = -1 if rule.window is None else rule.window - 1
    # What torch.nn.attention.varlen calls, which passes no dropout on.
    out: Tensor = torch.ops.aten._flash_attention_forward(
        *(part.contiguous() for part in parts),
        borders,
        borders,
        longest,
        longest,
        rule.dropout,
        rule.causal and rule.window is None,
        False,
        scale=rule.scaling,
        window_size_left=reach,
        window_size_right=0 if rule.causal else reach,
    )[0]
    return out
