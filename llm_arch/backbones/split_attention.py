"""Packed attention in one operation: the flash kernel for long sequences, ours for the short ones after them.

The flash kernel starts blocks for the longest sequence in each of them, most of its time where few are long. Where the
long ones end is a tensor of the CPU, read inside: a compiled graph then serves all batches, whatever their lengths, and
what both kernels find goes to its place without a concatenation.

Legend: T tokens, B sequences, H heads, K of them for keys and values, d head size; S tokens of the long sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_arch.types.batch import SHORT

aten = torch.ops.aten
Parts = tuple[Tensor, Tensor, Tensor]  # query, key and value


class Rule(NamedTuple):
    """What attends what, and how.

    Attributes:
        causal: whether a token sees only what came before it.
        window: positions further apart than this do not attend each other (the distance itself excluded).
        scaling: factor on the scores.
        dropout: probability on the weights.
    """

    causal: bool
    window: int | None
    scaling: float
    dropout: float

    @property
    def flash(self) -> dict[str, Any]:
        """It in the flash kernel's words, but for what stands before them."""
        reach = -1 if self.window is None else self.window - 1
        right = 0 if self.causal else reach
        return {"scale": self.scaling, "window_size_left": reach, "window_size_right": right}

    @property
    def triangular(self) -> bool:
        """Whether the flash kernel needs no window to say it."""
        return self.causal and self.window is None


def flash_attention(parts: Parts, borders: Tensor, longest: int, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """(T, H, d) what is attended, (H, T) log of the softmax's sum, and the state of what drew the dropout."""
    # What torch.nn.attention.varlen calls, which passes no dropout on.
    out, logs, state, *_ = aten._flash_attention_forward(
        *(part.contiguous() for part in parts),
        borders,
        borders,
        longest,
        longest,
        rule.dropout,
        rule.triangular,
        False,
        **rule.flash,
    )
    return out, logs, state


@torch.library.custom_op("llm_arch::split_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def split_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    extents: Tensor,
    seed: Tensor,
    causal: bool,
    window: int | None,
    scaling: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention within sequences, the short ones last.

    Args:
        query: (T, H, d), half precision on a GPU; d is one of those our kernel does there.
        key: (T, K, d).
        value: (T, K, d).
        borders: (B + 1,) int32, where sequences start, and T.
        extents: (3,) on the CPU: sequences up to the last long one, their tokens S, and tokens of the longest of all.
        seed: (1,) int64; equal ones drop equal weights of short sequences. It is not read without dropout.
        causal: whether a token sees only what came before it.
        window: as in `Rule`, at least as many positions as a short sequence has.
        scaling: factor on the scores.
        dropout: probability on the weights, below 1.

    Returns:
        (T, H, d), and for the backward pass (H·T,) the long sequences' logs of sums in the first H·S, and (2,) the
        state of what drew their dropout.
    """
    rule = Rule(causal, window, scaling, dropout)
    first, tokens, longest = extents.tolist()
    logs = query.new_empty(query.shape[0] * query.shape[1], dtype=torch.float32)
    state = torch.empty(2, dtype=torch.uint64, device=query.device)
    long = query
    if first:
        parts = query[:tokens], key[:tokens], value[:tokens]
        long, found, drawn = flash_attention(parts, borders[: first + 1], longest, rule)
        logs[: found.numel()] = found.flatten()
        if dropout > 0:
            state.copy_(drawn)
        if tokens == len(query):
            return long, logs, state
    from llm_arch.backbones import short_attention  # which needs Triton

    out = query.new_empty(query.shape)
    if first:
        out[:tokens] = long
    short_attention.forward((query, key, value), out, borders[first:], seed, min(longest, SHORT), rule)
    return out, logs, state


@torch.library.custom_op("llm_arch::split_attention_backward", mutates_args=())
def _gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    upstream: Tensor,
    out: Tensor,
    logs: Tensor,
    state: Tensor,
    borders: Tensor,
    extents: Tensor,
    seed: Tensor,
    causal: bool,
    window: int | None,
    scaling: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = Rule(causal, window, scaling, dropout)
    first, tokens, longest = extents.tolist()
    long: list[Tensor] = []
    if first:
        long = aten._flash_attention_backward(
            *(part[:tokens].contiguous() for part in (upstream, query, key, value, out)),
            logs[: query.shape[1] * tokens].view(query.shape[1], tokens),
            borders[: first + 1],
            borders[: first + 1],
            longest,
            longest,
            dropout,
            rule.triangular,
            state,
            state.new_empty(()),
            **rule.flash,
        )
        if tokens == len(query):
            return long[0], long[1], long[2]
    from llm_arch.backbones import short_attention

    found = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    for whole, part in zip(found, long, strict=False):
        whole[:tokens] = part
    given = query, key, value, upstream
    short_attention.backward(given, found, borders[first:], seed, min(longest, SHORT), rule)
    return found


@split_attention.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    logs = query.new_empty(query.shape[0] * query.shape[1], dtype=torch.float32)
    return query.new_empty(query.shape), logs, torch.empty(2, dtype=torch.uint64, device=query.device)


@_gradients.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, borders, extents, seed, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(query, key, value, *output, borders, extents, seed)


def _back(ctx: Any, upstream: Tensor, *rest: None) -> tuple[Any, ...]:
    query, key, value, *kept = ctx.saved_tensors
    found = torch.ops.llm_arch.split_attention_backward(query, key, value, upstream, *kept, *ctx.options)
    return (*found, *(None,) * 7)


split_attention.register_autograd(_back, setup_context=_keep)
