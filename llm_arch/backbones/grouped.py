"""Attention of sequences in groups of like length: little padding, few and large products.

A batch in random order padded to its longest is about half empty, and attention pays for it quadratically. Sorted by
length and padded group by group hardly anything is. torch's kernels for training on a CPU are no match for the plain
formula on texts of usual length (with dropout they fall back to it, without it their backward pass is slower), so the
formula is written out here, with dropout as in `dropout.py`.

Legend: T tokens, B sequences, G sequences of a group, L its longest, H heads, d head size, N cells of all groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from llm_arch.backbones.dropout import apply_mask, keep_share, random_mask

# What a group costs in calls, in scores of the padded grid (one head, one pair of tokens); and how many sequences at a
# time may begin one, so that sizes recur.
_CALLS = 32_000
_STEP = 4
# The kernels of matrix products are compiled anew for every shape, which takes longer than a product this small: sizes
# and lengths are rounded, so that shapes recur. torch's softmax of rows shorter than a vector register is slow, too.
_ROUNDED, _SHORTEST = 8, 16


class Group(NamedTuple):
    """Sequences padded together: `size` of them to `longest` tokens, in rows `start` … of the cells."""

    start: int
    size: int
    longest: int
    mask: Tensor | None  # (G·H or 1, L or 1, L) added to the scores, or None where everything may be attended


def attention_mask(lengths_B: Tensor, longest: int, causal: bool, window: int | None) -> Tensor | None:
    """What may be attended in a padded grid, (B or 1, L or 1, L) bool, or None where everything may.

    Args:
        lengths_B: tokens of each sequence; padding comes last.
        longest: L.
        causal: whether a token sees only what came before it.
        window: positions this far apart or further do not see each other; None for no limit.
    """
    position_L = torch.arange(longest, device=lengths_B.device)
    full = int(lengths_B.min()) == longest
    if window is None or window >= longest:
        if causal:  # padding comes last, so no token reaches it
            return (position_L <= position_L[:, None])[None]
        return None if full else (position_L < lengths_B[:, None])[:, None, :]
    ahead_LL = position_L[:, None] - position_L
    near_LL = ahead_LL.abs() < window
    if causal:
        return (near_LL & (ahead_LL >= 0))[None]
    real_BL = position_L < lengths_B[:, None]
    # A padded query attends whatever is near: a row that attends nothing would turn to NaN, and its gradient too.
    return near_LL & (real_BL[:, None, :] | ~real_BL[:, :, None])


class LengthGroups:
    """Which (token, head) each cell of the groups holds, and where each (token, head) lies.

    Args:
        lengths_B: (B,) tokens of the sequences, which lie one after another.
        heads: H.
        causal: whether a token sees only what came before it.
        window: how far a token sees, or None.
        dtype: of the scores.
    """

    def __init__(self, lengths_B: Tensor, heads: int, causal: bool, window: int | None, dtype: torch.dtype) -> None:
        order_B = torch.argsort(lengths_B, descending=True, stable=True)
        sorted_B, starts_B = lengths_B[order_B], (lengths_B.cumsum(0) - lengths_B)[order_B]
        head_H = torch.arange(heads)
        self.groups: list[Group] = []
        sources, gaps = [], []
        self.slots = torch.empty(int(lengths_B.sum()) * heads, dtype=torch.long)
        cells = 0
        for first, last in _cut(sorted_B.tolist(), heads):
            lengths_G, longest = sorted_B[first:last], _round(int(sorted_B[first]))
            position_L = torch.arange(longest)
            real_GL = position_L < lengths_G[:, None]
            # A cell without a token holds its sequence's first, which the mask keeps out.
            token_GL = starts_B[first:last, None] + torch.where(real_GL, position_L, 0)
            row_GHL = token_GL[:, None, :] * heads + head_H[:, None]
            cell_GHL = cells + torch.arange(row_GHL.numel()).view(row_GHL.shape)
            real_GHL = real_GL[:, None, :].expand_as(row_GHL)
            self.slots[row_GHL[real_GHL]] = cell_GHL[real_GHL]
            gaps.append(cell_GHL[~real_GHL])
            sources.append(row_GHL.flatten())
            seen = attention_mask(lengths_G, longest, causal, window)
            self.groups.append(Group(cells, len(lengths_G), longest, _added(seen, heads, dtype)))
            cells += row_GHL.numel()
        self.heads = heads
        self.longest = int(sorted_B[0])
        self.sources = torch.cat(sources)
        self.gaps = torch.cat(gaps)

    def gather(self, values_THd: Tensor) -> Tensor:
        """(N, d): the cells' values."""
        return values_THd.reshape(-1, values_THd.shape[-1]).index_select(0, self.sources)

    def scatter(self, cells_Nd: Tensor) -> Tensor:
        """(T, H, d): back from the cells."""
        return cells_Nd.index_select(0, self.slots).view(-1, self.heads, cells_Nd.shape[-1])

    def views(self, group: Group, *cells_Nd: Tensor) -> tuple[Tensor, ...]:
        """(G·H, L, d): a group's part of the cells."""
        rows = group.size * self.heads
        span = slice(group.start, group.start + rows * group.longest)
        return tuple(c[span].view(rows, group.longest, -1) for c in cells_Nd)


def _cut(lengths: list[int], heads: int) -> list[tuple[int, int]]:
    """Where groups of lengths in descending order begin and end, so that all together cost least."""
    borders = [*range(0, len(lengths), _STEP), len(lengths)]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # up to a border: the cost, and where its last group begins
    for last in borders[1:]:
        best[last] = min(
            (best[first][0] + _CALLS + heads * (last - first) * _round(lengths[first]) ** 2, first)
            for first in borders
            if first < last
        )
    groups, last = [], len(lengths)
    while last:
        groups.append((best[last][1], last))
        last = best[last][1]
    return groups[::-1]


def _round(length: int) -> int:
    return max(_SHORTEST, -(-length // _ROUNDED) * _ROUNDED)


def _added(seen: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    if seen is None:
        return None
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
    return mask if len(mask) == 1 else mask.repeat_interleave(heads, 0)


class _Attention(torch.autograd.Function):
    """softmax(s·QKᵀ + mask) with dropout, times V; gradients by the chain rule, nothing formed twice."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: LengthGroups, scale: float, dropout: float
    ) -> Tensor:
        query_Nd, key_Nd, value_Nd = map(groups.gather, (query, key, value))
        out_Nd = torch.empty_like(query_Nd)
        keep = keep_share(dropout)
        unused = query_Nd.new_empty(())
        kept: list[Tensor] = []
        for group in groups.groups:
            Q, K, V, out = groups.views(group, query_Nd, key_Nd, value_Nd, out_Nd)
            mask, beta = (unused, 0) if group.mask is None else (group.mask, 1)
            weights = _softmax(torch.baddbmm(mask, Q, K.transpose(1, 2), beta=beta, alpha=scale))
            kept.append(weights)
            if dropout > 0:
                kept.append(random_mask(weights.shape, keep, weights.dtype))
                weights = apply_mask(weights, kept[-1])
            torch.baddbmm(unused, weights, V, beta=0, alpha=1 / keep, out=out)
        ctx.groups, ctx.scale, ctx.dropout = groups, scale, dropout
        ctx.save_for_backward(query_Nd, key_Nd, value_Nd, *kept)
        return groups.scatter(out_Nd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        groups: LengthGroups = ctx.groups
        query_Nd, key_Nd, value_Nd, *saved = ctx.saved_tensors
        # What flows back into a gap must be zero: there is a token of somewhere else.
        out_Nd = groups.gather(gradients[0]).index_fill_(0, groups.gaps, 0.0)
        grads_Nd = [torch.empty_like(query_Nd) for _ in range(3)]
        keep = keep_share(ctx.dropout)
        unused = query_Nd.new_empty(())
        kept = iter(saved)
        for group in groups.groups:
            Q, K, V, dO, dQ, dK, dV = groups.views(group, query_Nd, key_Nd, value_Nd, out_Nd, *grads_Nd)
            weights = next(kept)
            mask = next(kept) if ctx.dropout > 0 else None
            dropped = weights if mask is None else apply_mask(weights, mask)
            torch.baddbmm(unused, dropped.transpose(1, 2), dO, beta=0, alpha=1 / keep, out=dV)
            d_weights = torch.baddbmm(unused, dO, V.transpose(1, 2), beta=0, alpha=1 / keep)
            if mask is not None:
                d_weights = apply_mask(d_weights, mask)
            d_scores = _softmax_backward(d_weights, weights)
            torch.baddbmm(unused, d_scores, K, beta=0, alpha=ctx.scale, out=dQ)
            torch.baddbmm(unused, d_scores.transpose(1, 2), Q, beta=0, alpha=ctx.scale, out=dK)
        return *map(groups.scatter, grads_Nd), None, None, None


def _softmax(scores: Tensor) -> Tensor:
    if scores.dtype == torch.float64:
        return scores.softmax(-1)
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)  # in half precision it is slower, not faster


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    backward = torch.ops.aten._softmax_backward_data
    if weights.itemsize > 2 or weights.shape[-1] >= 2 * _SHORTEST:
        return backward(gradient, weights, -1, weights.dtype)
    return backward(gradient.float(), weights.float(), -1, torch.float32).to(weights.dtype)


def training_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: LengthGroups, scale: float, dropout: float
) -> Tensor:
    """Attention with gradients; its weights are kept for the backward pass, H·L² numbers a sequence.

    Args:
        query: (T, H, d), on the CPU.
        key: (T, H, d).
        value: (T, H, d).
        groups: of these sequences, heads and dtype.
        scale: factor on the scores.
        dropout: probability on the attention weights.

    Returns:
        (T, H, d).
    """
    with torch.autocast("cpu", enabled=False):  # all inputs have one dtype already
        out: Tensor = _Attention.apply(query, key, value, groups, scale, dropout)
    return out


def evaluation_attention(query: Tensor, key: Tensor, value: Tensor, groups: LengthGroups, scale: float) -> Tensor:
    """The same without gradients and dropout, by torch's kernel, which does not form the weights."""
    cells = [groups.gather(x) for x in (query, key, value)]
    out_Nd = torch.empty_like(cells[0])
    for group in groups.groups:
        *inputs, out = groups.views(group, *cells, out_Nd)
        grid = (group.size, groups.heads, group.longest, -1)
        mask = group.mask
        if mask is not None and len(mask) > 1:
            mask = mask.view(group.size, groups.heads, *mask.shape[1:])
        Q, K, V = (x.view(grid) for x in inputs)
        out.view(grid).copy_(scaled_dot_product_attention(Q, K, V, attn_mask=mask, scale=scale))
    return groups.scatter(out_Nd)
