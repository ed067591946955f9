"""Attention over sequences that lie one after another: no token attends across a border, nothing outside is padded.

transformers calls one attention function for every model; registering ours there makes any of them padding-free
without model code of our own. On CPU sequences are padded inside the attention call only, in groups of like length; on
CUDA in half precision nothing is (`varlen`).

Legend: T tokens, B sequences, L longest sequence, H heads, K key/value heads, d head size.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llm_arch import fillers
from llm_arch.backbones.grouped import LengthGroups, attention_mask, evaluation_attention, training_attention
from llm_arch.backbones.varlen import kernels_of, varlen_attention, varlen_serves
from llm_arch.types import Batch

NAME = "llm_arch_packed"
# Beyond this length a kernel that does not keep the weights (H·L² numbers) is worth its slower backward pass.
_KEEP_WEIGHTS_UP_TO = 1024


class PackedMap:
    """Where each token of a flat batch lies in the padded (B, L) grid, with the masks; shared by all layers.

    Args:
        batch: a batch in the flat layout.
    """

    def __init__(self, batch: Batch) -> None:
        self.lengths_B = batch.lengths
        self.size = batch.size
        self.tokens = len(batch.input_ids)
        self.longest, self.short_from = batch.longest, batch.short_from
        self.slots_T = batch.segments * self.longest + batch.position_ids
        self.ragged = self.size * self.longest != len(batch.input_ids)
        ends_B = batch.lengths.cumsum(0)
        self.borders = torch.cat([ends_B.new_zeros(1), ends_B]).to(torch.int32)
        # Read inside an operation, on the CPU: a compiled graph does not depend on them.
        self.extents = torch.tensor([*self.short_from, self.longest], device="cpu")
        self.kernels = kernels_of(self.borders.device)  # asked here, outside of what may be compiled
        self._masks: dict[tuple[bool, int | None], Tensor | None] = {}
        self._groups: dict[tuple[int, bool, int | None, torch.dtype], LengthGroups] = {}

    def pad(self, values: Tensor) -> Tensor:
        """(T, …) → (B, L, …); cells without a token hold the sequence's first token, which the masks keep out."""
        if self.ragged:
            values = _Pad.apply(values, self.sources, self.slots_T)
        return values.view(self.size, self.longest, *values.shape[1:])

    def unpad(self, grid: Tensor) -> Tensor:
        """(B, L, …) → (T, …)."""
        flat = grid.reshape(self.size * self.longest, *grid.shape[2:])
        return _Unpad.apply(flat, self.sources, self.slots_T, self.gaps) if self.ragged else flat

    @cached_property
    def sources(self) -> Tensor:
        """(B·L,) which token each cell of the grid holds."""
        position_L = torch.arange(self.longest, device=self.lengths_B.device)
        starts_B = self.lengths_B.cumsum(0) - self.lengths_B
        return torch.where(
            position_L < self.lengths_B[:, None], starts_B[:, None] + position_L, starts_B[:, None]
        ).flatten()

    @cached_property
    def gaps(self) -> Tensor:
        """Cells of the grid without a token."""
        position_L = torch.arange(self.longest, device=self.lengths_B.device)
        return (position_L >= self.lengths_B[:, None]).flatten().nonzero()[:, 0]

    def mask(self, causal: bool, window: int | None) -> Tensor | None:
        """What may be attended, (B or 1, 1, L or 1, L) bool, or None where the kernel's own causal rule says it all."""
        key = (causal, window)
        if key not in self._masks:
            seen = attention_mask(self.lengths_B, self.longest, causal, window)
            kernel_knows = causal and (window is None or window >= self.longest)
            self._masks[key] = None if seen is None or kernel_knows else seen[:, None]
        return self._masks[key]

    def groups(self, heads: int, causal: bool, window: int | None, dtype: torch.dtype) -> LengthGroups:
        """The sequences in groups of like length, made once for all layers."""
        key = (heads, causal, window, dtype)
        if key not in self._groups:
            self._groups[key] = LengthGroups(self.lengths_B, *key)
        return self._groups[key]


class _Pad(torch.autograd.Function):
    """Tokens into the grid. Both directions are plain gathers: what flows back into a gap is zero and is not read."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sources: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return values.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return gradients[0].index_select(0, slots), None, None


class _Unpad(torch.autograd.Function):
    """The grid's tokens in a row; backwards the gaps get a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, sources: Tensor, slots: Tensor, gaps: Tensor) -> Tensor:
        ctx.save_for_backward(sources, gaps)
        return grid.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sources, gaps = ctx.saved_tensors
        return gradients[0].index_select(0, sources).index_fill_(0, gaps, 0.0), None, None, None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    packed: PackedMap | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of a flat batch in the signature that transformers calls.

    Args:
        module: the attention layer; its `is_causal` counts where the call does not say.
        query: (1, H, T, d).
        key: (1, K, T, d).
        value: (1, K, T, d).
        attention_mask: must be None; the map says what may be attended.
        scaling: factor on the scores; 1/√d by default.
        dropout: probability on the attention weights.
        sliding_window: positions further apart than this do not attend each other (the distance itself excluded).
        is_causal: whether a token sees only what came before it.
        packed: where the sequences lie; a model forwards it from its own call.
        **extra: what other attention functions take.

    Returns:
        (1, T, H, d), and None for the weights, which are never formed.
    """
    if packed is None:
        raise RuntimeError(f"{NAME} attention was called without its map: call the model through its Backbone")
    for name in ("softcap", "position_bias", "s_aux"):
        if extra.get(name) is not None:
            raise ValueError(f"{type(module).__name__} attends with {name}, which packed attention does not do")
    if attention_mask is not None:
        raise ValueError("packed attention takes no attention mask: the map says what may be attended")
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    count = query.shape[2] - packed.tokens  # fillers neither attend nor are attended
    if count:
        query, key, value = (x[:, :, : packed.tokens] for x in (query, key, value))
    out_THd = _attention(query, key, value, packed, causal, sliding_window, scaling, dropout)
    return fillers.filled(out_THd, count).unsqueeze(0), None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedMap,
    causal: bool,
    sliding_window: int | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """(T, H, d)."""
    # Under autocast rotary positions (Llama's) make fp32 of query and key; torch's own kernel would turn them back too.
    query, key = query.to(value.dtype), key.to(value.dtype)
    query_THd, key_TKd, value_TKd = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))

    if varlen_serves(query, packed):
        return varlen_attention(query_THd, key_TKd, value_TKd, packed, causal, sliding_window, scaling, dropout)

    groups = query_THd.shape[1] // key_TKd.shape[1]
    if groups > 1:
        key_TKd, value_TKd = key_TKd.repeat_interleave(groups, 1), value_TKd.repeat_interleave(groups, 1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        with_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        alone = packed.size == 1 and not with_grad and dropout == 0  # there is nothing to put into groups
        if not alone and (dropout > 0 or not with_grad or packed.longest <= _KEEP_WEIGHTS_UP_TO):
            like = packed.groups(query_THd.shape[1], causal, sliding_window, query.dtype)
            parts = (query_THd, key_TKd, value_TKd, like, scaling)
            return training_attention(*parts, dropout) if dropout > 0 or with_grad else evaluation_attention(*parts)
    query_BHLd, key_BHLd, value_BHLd = (packed.pad(x).transpose(1, 2) for x in (query_THd, key_TKd, value_TKd))
    mask = packed.mask(causal, sliding_window)
    out_BHLd = scaled_dot_product_attention(
        query_BHLd,
        key_BHLd,
        value_BHLd,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scaling,
    )
    return packed.unpad(out_BHLd.transpose(1, 2))


# No mask function is registered beside it: transformers then builds no mask and passes None.
AttentionInterface.register(NAME, packed_attention)
