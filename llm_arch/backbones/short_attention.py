"""Attention of many short sequences on a GPU, forward and backward in one kernel each.

The tiles of flash kernels are made for long sequences: one of 50 tokens fills a sixth of them. Here a whole sequence is
a tile of 32, 64 or 128 keys, so that a row of weights is there at once: nothing is kept for the backward pass, which
makes the weights again and needs no sums over parts. Dropout draws per weight by a hash of (seed, token, head, key).

Needs Triton, which torch brings along on Linux with CUDA: `varlen` knows where it runs, `split_attention` starts it.

Legend: T tokens, B sequences, H heads, K of them for keys and values, d head size; N keys and M queries of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llm_arch.backbones.split_attention import Parts, Rule
from llm_arch.types.batch import SHORT

# Keys and queries of a tile, and warps that share it: what was fastest on an H200. A kernel is started once for each,
# over all sequences, and leaves those alone that another tile fits: which are which is known on the device only.
_FORWARD = ((32, 32, 2), (64, 64, 4), (SHORT, 64, 4))
_BACKWARD = ((32, 32, 4), (64, 64, 4), (SHORT, 32, 4))
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _mixed(x):
    # The finalizer of MurmurHash3: each bit of the input changes half of the output's.
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _kept(SEED, cells_M, keys_N, threshold):
    """(M, N) which weights dropout keeps: of each cell, a token and head, a splitmix stream over the keys."""
    seed = tl.load(SEED)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    streams_M = _mixed(_mixed(cells_M.to(tl.uint32) * 0x9E3779B9 + low) ^ high)
    drawn_MN = _mixed(streams_M[:, None] + keys_N.to(tl.uint32)[None, :] * 0x9E3779B9)
    return drawn_MN >= threshold


@triton.jit
def _read(START, rows, stride, length, D: tl.constexpr):
    """(rows, D) of a sequence's head, zero beyond its end."""
    return tl.load(START + rows[:, None] * stride + tl.arange(0, D)[None, :], (rows < length)[:, None], 0.0)


@triton.jit
def _write(START, values, rows, stride, length, D: tl.constexpr):
    places = START + rows[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(places, values.to(START.dtype.element_ty), (rows < length)[:, None])


@triton.jit
def _weights(q_Md, k_Nd, rows_M, keys_N, length, scale, CAUSAL: tl.constexpr):
    """(M, N) the softmax of the scores."""
    scores_MN = tl.dot(q_Md, tl.trans(k_Nd)) * (scale * _LOG2_E)
    seen_MN = (keys_N < length)[None, :]
    if CAUSAL:
        seen_MN = seen_MN & (keys_N[None, :] <= rows_M[:, None])
    scores_MN = tl.where(seen_MN, scores_MN, float("-inf"))
    grown_MN = tl.exp2(scores_MN - tl.max(scores_MN, 1)[:, None])
    return grown_MN / tl.sum(grown_MN, 1)[:, None]


@triton.jit
def _short_attention_forward(
    Q, K, V, OUT, BORDERS, SEED, q_t, q_h, k_t, k_h, v_t, v_h, o_t, o_h, heads, group, scale, threshold, grow,
    CAUSAL: tl.constexpr, DROP: tl.constexpr, ABOVE: tl.constexpr, N: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start = tl.load(BORDERS + sequence).to(tl.int64)
    length = (tl.load(BORDERS + sequence + 1) - start).to(tl.int32)
    if (length <= ABOVE) | (length > N):
        return
    keys_N = tl.arange(0, N)
    k_Nd = _read(K + start * k_t + head // group * k_h, keys_N, k_t, length, D)
    v_Nd = _read(V + start * v_t + head // group * v_h, keys_N, v_t, length, D)
    for first in range(0, length, M):
        rows_M = first + tl.arange(0, M)
        q_Md = _read(Q + start * q_t + head * q_h, rows_M, q_t, length, D)
        w_MN = _weights(q_Md, k_Nd, rows_M, keys_N, length, scale, CAUSAL)
        if DROP:
            kept_MN = _kept(SEED, (start.to(tl.int32) + rows_M) * heads + head, keys_N, threshold)
            w_MN = tl.where(kept_MN, w_MN * grow, 0.0)
        _write(OUT + start * o_t + head * o_h, tl.dot(w_MN.to(v_Nd.dtype), v_Nd), rows_M, o_t, length, D)


@triton.jit
def _short_attention_backward(
    Q, K, V, G, DQ, DK, DV, BORDERS, SEED, q_t, q_h, k_t, k_h, v_t, v_h, g_t, g_h, o_t, o_h, heads, group, scale,
    threshold, grow, CAUSAL: tl.constexpr, DROP: tl.constexpr, ABOVE: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    shared = heads // group  # heads of keys and values: a program does one of them, and the queries that share it
    sequence, part = tl.program_id(0) // shared, tl.program_id(0) % shared
    start = tl.load(BORDERS + sequence).to(tl.int64)
    length = (tl.load(BORDERS + sequence + 1) - start).to(tl.int32)
    if (length <= ABOVE) | (length > N):
        return
    keys_N = tl.arange(0, N)
    k_Nd = _read(K + start * k_t + part * k_h, keys_N, k_t, length, D)
    v_Nd = _read(V + start * v_t + part * v_h, keys_N, v_t, length, D)
    dk_Nd, dv_Nd = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    for head in range(part * group, part * group + group):
        for first in range(0, length, M):
            rows_M = first + tl.arange(0, M)
            q_Md = _read(Q + start * q_t + head * q_h, rows_M, q_t, length, D)
            g_Md = _read(G + start * g_t + head * g_h, rows_M, g_t, length, D)
            w_MN = _weights(q_Md, k_Nd, rows_M, keys_N, length, scale, CAUSAL)
            dw_MN = tl.dot(g_Md, tl.trans(v_Nd))
            used_MN = w_MN
            if DROP:
                kept_MN = _kept(SEED, (start.to(tl.int32) + rows_M) * heads + head, keys_N, threshold)
                used_MN = tl.where(kept_MN, w_MN * grow, 0.0)
                dw_MN = tl.where(kept_MN, dw_MN * grow, 0.0)
            ds_MN = (w_MN * (dw_MN - tl.sum(w_MN * dw_MN, 1)[:, None]) * scale).to(q_Md.dtype)
            dv_Nd += tl.dot(tl.trans(used_MN.to(g_Md.dtype)), g_Md)
            dk_Nd += tl.dot(tl.trans(ds_MN), q_Md)
            _write(DQ + start * o_t + head * o_h, tl.dot(ds_MN, k_Nd), rows_M, o_t, length, D)
    place = start * shared * o_h + part * o_h
    _write(DK + place, dk_Nd, keys_N, shared * o_h, length, D)
    _write(DV + place, dv_Nd, keys_N, shared * o_h, length, D)


def _start(
    kernel: Any,
    tiles: Sequence[tuple[int, int, int]],
    given: tuple[Tensor, ...],
    found: tuple[Tensor, ...],
    borders: Tensor,
    seed: Tensor,
    longest: int,
    rule: Rule,
    programs: int,
) -> None:
    H, K, d = given[0].shape[1], given[1].shape[1], given[0].shape[2]
    given = tuple(part if part.stride(-1) == 1 else part.contiguous() for part in given)
    strides = [stride for part in (*given, found[0]) for stride in part.stride()[:2]]
    numbers = (H, H // K, rule.scaling, min(int(rule.dropout * 2**32), 2**32 - 1), 1.0 / (1.0 - rule.dropout))
    options = {"CAUSAL": rule.causal, "DROP": rule.dropout > 0, "D": d, "num_stages": 1}
    above = 0
    with torch.cuda.device_of(given[0]):  # else Triton starts them on the current one
        for keys, queries, warps in tiles:
            if above >= longest:
                break
            tile = {"ABOVE": above, "N": keys, "M": queries, "num_warps": warps}
            kernel[(len(borders) - 1) * programs,](*given, *found, borders, seed, *strides, *numbers, **options, **tile)
            above = keys


def forward(parts: Parts, out: Tensor, borders: Tensor, seed: Tensor, longest: int, rule: Rule) -> None:
    """Attention within sequences of up to 128 tokens each.

    Args:
        parts: query (T, H, d), key and value (T, K, d), half precision on a GPU; d is 16, 32, 64 or 128.
        out: (T, H, d), written where the sequences lie.
        borders: (B + 1,) int32, where sequences start, and where the last one ends.
        seed: (1,) int64; equal ones drop equal weights. It is not read without dropout.
        longest: tokens of the longest sequence, or more.
        rule: what attends what; its window is not read.
    """
    _start(_short_attention_forward, _FORWARD, parts, (out,), borders, seed, longest, rule, out.shape[1])


def backward(given: tuple[Tensor, ...], found: Parts, borders: Tensor, seed: Tensor, longest: int, rule: Rule) -> None:
    """Its gradients.

    Args:
        given: query, key, value, and (T, H, d) the gradient of what `forward` wrote.
        found: contiguous, the gradients of the first three, written where the sequences lie.
        borders: as in `forward`, as are the others.
        seed: equal to that of the forward pass.
        longest: tokens of the longest sequence, or more.
        rule: equal to that of the forward pass.
    """
    wide = given[0].shape[2] > 64  # such heads fill the registers of twice as many warps
    tiles = [(keys, queries, warps * 2 if wide and keys > 32 else warps) for keys, queries, warps in _BACKWARD]
    _start(_short_attention_backward, tiles, given, found, borders, seed, longest, rule, given[1].shape[1])
