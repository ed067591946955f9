"""Packed attention on a GPU in half precision: a flash kernel for long sequences, our own for short ones.

Legend: T tokens, B sequences, H heads, K key/value heads, d head size.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llm_arch.types.batch import SHORT

if TYPE_CHECKING:
    from llm_arch.backbones.packed import PackedMap

# Head sizes that our kernel does, and the bytes of shared memory that its backward pass takes for them.
_HEAD_SIZES = {16: 30720, 32: 45056, 64: 73728, 128: 131072}
Parts = tuple[Tensor, Tensor, Tensor]  # query, key and value


class _Rule(NamedTuple):
    causal: bool
    window: int | None
    scaling: float
    dropout: float


class Kernels(NamedTuple):
    """What a device does.

    Attributes:
        flash: whether it has the flash kernel.
        own_sizes: the head sizes that our kernel does.
    """

    flash: bool
    own_sizes: tuple[int, ...]


@cache
def kernels_of(device: torch.device) -> Kernels:
    """The kernels that a device has; loads ours where it runs."""
    if device.type != "cuda":
        return Kernels(False, ())
    flash = torch.cuda.get_device_capability(device) >= (8, 0)
    if not flash or torch.version.cuda is None or find_spec("triton") is None:
        return Kernels(flash, ())
    try:
        import triton

        from llm_arch.backbones import short_attention  # noqa: F401  # imports Triton, which not every machine has

        triton.runtime.driver.active.utils  # noqa: B018  # built with a C compiler, which not every machine has
    except Exception as error:
        warnings.warn(f"short documents go to the flash kernel, since Triton does not run here: {error}", stacklevel=2)
        return Kernels(flash, ())
    memory = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return Kernels(flash, tuple(size for size, needed in _HEAD_SIZES.items() if needed <= memory))


def varlen_serves(query: Tensor, packed: PackedMap) -> bool:
    """Whether attention of this query, (1, H, T, d), needs no padding."""
    # The flash kernel knows half precision only.
    return packed.kernels.flash and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256


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
    own = query_THd.shape[-1] in packed.kernels.own_sizes and query_THd.shape == key_TKd.shape == value_TKd.shape
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
    if rule.dropout > 0:
        seed = torch.randint(2**62, (1,), device=borders.device)
    else:
        seed = borders.new_empty(1, dtype=torch.long)  # which is not read
    options = longest, rule.dropout, rule.scaling, rule.causal
    out: Tensor = torch.ops.llm_arch.short_attention(*parts, borders, seed, *options)
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
