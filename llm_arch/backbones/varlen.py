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

from llm_arch.backbones.split_attention import Parts, Rule, flash_attention
from llm_arch.types.batch import SHORT

if TYPE_CHECKING:
    from llm_arch.backbones.packed import PackedMap

# Head sizes that our kernel does, powers of two, and the bytes of shared memory that its backward pass takes for them.
_HEAD_SIZES = {16: 30720, 32: 45056, 64: 73728, 128: 131072}
_SMALLEST = min(_HEAD_SIZES)


class Kernels(NamedTuple):
    """What a device does.

    Attributes:
        flash: whether it has the flash kernel.
        own: the largest head size that our kernel does; 0 where it does not run.
    """

    flash: bool
    own: int

    def own_does(self, size: int) -> bool:
        """Whether our kernel does a head size."""
        # Not by a set of sizes: a compiler that takes its numbers for variables finds none of them in it.
        return _SMALLEST <= size <= self.own and size & (size - 1) == 0


@cache
def kernels_of(device: torch.device) -> Kernels:
    """The kernels that a device has; loads ours where it runs."""
    if device.type != "cuda":
        return Kernels(False, 0)
    flash = torch.cuda.get_device_capability(device) >= (8, 0)
    if not flash or torch.version.cuda is None or find_spec("triton") is None:
        return Kernels(flash, 0)
    try:
        import triton

        from llm_arch.backbones import short_attention  # noqa: F401  # imports Triton, which not every machine has

        triton.runtime.driver.active.utils  # noqa: B018  # built with a C compiler, which not every machine has
    except Exception as error:
        warnings.warn(f"short documents go to the flash kernel, since Triton does not run here: {error}", stacklevel=2)
        return Kernels(flash, 0)
    memory = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return Kernels(flash, max((size for size, needed in _HEAD_SIZES.items() if needed <= memory), default=0))


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
    scaling = query_THd.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(causal, window, scaling, dropout)
    parts = query_THd, key_TKd, value_TKd
    if not packed.kernels.own_does(query_THd.shape[-1]) or dropout >= 1 or (window is not None and window < SHORT):
        return _flash_only(parts, packed, rule)
    if dropout > 0:
        seed = torch.randint(2**62, (1,), device=query_THd.device)
    else:
        seed = packed.borders.new_empty(1, dtype=torch.long)  # which is not read
    out: Tensor = torch.ops.llm_arch.split_attention(*parts, packed.borders, packed.extents, seed, *rule)[0]
    return out


def _flash_only(parts: Parts, packed: PackedMap, rule: Rule) -> Tensor:
    first, tokens = packed.short_from
    if first in (0, packed.size):
        return flash_attention(parts, packed.borders, packed.longest, rule)[0]
    # The kernel starts blocks for the longest sequence in each of them: most of its time where few are long.
    (q, q_), (k, k_), (v, v_) = (part.split([tokens, packed.tokens - tokens]) for part in parts)
    long = flash_attention((q, k, v), packed.borders[: first + 1], packed.longest, rule)[0]
    short = flash_attention((q_, k_, v_), packed.borders[first:] - tokens, SHORT, rule)[0]
    return torch.cat([long, short])
