"""Packed attention against plain attention of each sequence alone, and the map that places tokens in the grid."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_arch.backbones import packed, varlen
from llm_arch.backbones.packed import PackedMap, packed_attention
from llm_arch.data.collate import make_batch
from llm_arch.types import Batch
from llm_arch.types import batch as batch_module

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def flat(lengths: list[int]) -> Batch:
    rows = [list(range(1, n + 1)) for n in lengths]
    return make_batch(
        {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}, "flat"
    )


def naive(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], causal: bool, window: int | None) -> Tensor:
    """(1, T, H, d): softmax attention written out, one sequence and one head after another."""
    groups = query.shape[1] // key.shape[1]
    out = torch.zeros(1, query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype)
    start = 0
    for n in lengths:
        for h in range(query.shape[1]):
            q, k, v = query[0, h], key[0, h // groups], value[0, h // groups]
            for i in range(n):
                seen = [
                    j for j in range(n) if not (causal and j > i) and not (window is not None and abs(i - j) >= window)
                ]
                scores = torch.stack([q[start + i] @ k[start + j] / math.sqrt(q.shape[-1]) for j in seen])
                weights = scores.softmax(0)
                out[0, start + i, h] = sum(w * v[start + j] for w, j in zip(weights, seen, strict=True))
        start += n
    return out


def inputs(tokens: int, heads: int = 2, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(1, heads, tokens, 4), (1, kv_heads, tokens, 4), (1, kv_heads, tokens, 4)]
    q, k, v = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    return q, k, v


class Layer(nn.Module):
    is_causal = False


@settings(max_examples=40, deadline=None)
@given(lengths=SHAPES, causal=st.booleans(), window=st.sampled_from([None, 1, 2, 3, 50]), kv=st.sampled_from([1, 2]))
def test_attention_is_that_of_each_sequence_alone(
    lengths: list[int], causal: bool, window: int | None, kv: int
) -> None:
    q, k, v = inputs(sum(lengths), 2, kv)
    out, weights = packed_attention(
        Layer(), q, k, v, None, is_causal=causal, sliding_window=window, packed=PackedMap(flat(lengths))
    )
    expected = naive(q, k, v, lengths, causal, window)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_the_module_says_whether_it_is_causal_unless_the_call_does(causal: bool) -> None:
    lengths = [4, 2]
    q, k, v = inputs(6)
    layer = Layer()
    layer.is_causal = causal
    where = PackedMap(flat(lengths))
    torch.testing.assert_close(
        packed_attention(layer, q, k, v, None, packed=where)[0], naive(q, k, v, lengths, causal, None)
    )
    told = packed_attention(layer, q, k, v, None, is_causal=not causal, packed=where)[0]
    torch.testing.assert_close(told, naive(q, k, v, lengths, not causal, None))


def test_scaling_replaces_the_usual_factor() -> None:
    q, k, v = inputs(5)
    out, _ = packed_attention(Layer(), q, k, v, None, scaling=0.3, packed=PackedMap(flat([3, 2])))
    expected = naive(q * 0.3 * 2, k, v, [3, 2], False, None)  # √4 undoes the usual factor
    torch.testing.assert_close(out, expected)


def test_dropout_falls_on_the_weights() -> None:
    q, k, v = inputs(200, 1, 1)
    with torch.no_grad():
        ones = torch.ones_like(v)
        out, _ = packed_attention(Layer(), q, k, ones, None, dropout=0.25, packed=PackedMap(flat([200])))
    assert out.std() > 0
    assert abs(float(out.mean()) - 1) < 0.05  # what is kept is scaled up


@given(lengths=SHAPES)
def test_unpad_undoes_pad_and_the_grid_holds_each_token_in_its_cell(lengths: list[int]) -> None:
    where = PackedMap(flat(lengths))
    values = torch.randn(sum(lengths), 3)
    grid = where.pad(values)
    assert grid.shape == (len(lengths), max(lengths), 3)
    assert torch.equal(where.unpad(grid), values)
    for row, part in zip(grid, values.split(lengths), strict=True):
        assert torch.equal(row[: len(part)], part)
        assert torch.equal(row[len(part) :], part[:1].expand(max(lengths) - len(part), 3))


@given(lengths=SHAPES)
def test_gaps_get_no_gradient_and_give_none(lengths: list[int]) -> None:
    where = PackedMap(flat(lengths))
    grid = torch.randn(len(lengths), max(lengths), 2, requires_grad=True)
    upstream = torch.randn(sum(lengths), 2)
    (gradient,) = torch.autograd.grad(where.unpad(grid), grid, upstream)
    for row, part in zip(gradient, upstream.split(lengths), strict=True):
        assert torch.equal(row[: len(part)], part)
        assert not row[len(part) :].any()
    values = torch.randn(sum(lengths), 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(where.pad(values), values, torch.ones(len(lengths), max(lengths), 2))
    assert torch.equal(gradient, torch.ones_like(values))


@given(lengths=SHAPES, causal=st.booleans(), window=st.sampled_from([None, 1, 3, 50]))
def test_the_mask_lets_a_token_see_what_it_may(lengths: list[int], causal: bool, window: int | None) -> None:
    longest = max(lengths)
    mask = PackedMap(flat(lengths)).mask(causal, window)
    full = torch.ones(len(lengths), 1, longest, longest, dtype=torch.bool) if mask is None else mask
    full = full.expand(len(lengths), 1, longest, longest)
    for b, n in enumerate(lengths):
        for i in range(longest):
            assert full[b, 0, i].any()  # a row without anything to see would be NaN
            for j in range(longest):
                expected = j < n and not (window is not None and abs(i - j) >= window) and not (causal and j > i)
                if i < n and not (mask is None and causal):  # then the kernel's own rule applies
                    assert bool(full[b, 0, i, j]) == expected


def test_masks_are_made_once() -> None:
    where = PackedMap(flat([3, 1]))
    assert where.mask(False, 2) is where.mask(False, 2)
    assert where.mask(False, 2) is not where.mask(True, 2)


def test_without_its_map_it_raises() -> None:
    q, k, v = inputs(3)
    with pytest.raises(RuntimeError, match="called without its map: call the model through its Backbone"):
        packed_attention(Layer(), q, k, v, None)


@pytest.mark.parametrize("name", ["softcap", "position_bias", "s_aux"])
def test_what_it_does_not_do_it_refuses(name: str) -> None:
    q, k, v = inputs(3)
    extra: dict[str, Any] = {name: 1.0}
    with pytest.raises(ValueError, match=f"Layer attends with {name}, which packed attention does not do"):
        packed_attention(Layer(), q, k, v, None, packed=PackedMap(flat([3])), **extra)
    packed_attention(Layer(), q, k, v, None, packed=PackedMap(flat([3])), **{name: None})


def test_a_mask_beside_the_map_is_refused() -> None:
    q, k, v = inputs(3)
    with pytest.raises(ValueError, match="packed attention takes no attention mask"):
        packed_attention(Layer(), q, k, v, torch.ones(1, 1, 3, 3), packed=PackedMap(flat([3])))


# The flash kernel of CUDA, by a stand-in for it


def flash_stand_in(calls: list[dict[str, Any]]) -> Any:
    """The kernel's forward pass on CPU: sequences by cumulative lengths, a window of (left, right), -1 for all."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        borders_q: Tensor,
        borders_k: Tensor,
        max_q: int,
        max_k: int,
        dropout: float,
        causal: bool,
        debug: bool,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
    ) -> tuple[Tensor, ...]:
        left = -1 if window_size_left is None else window_size_left
        right = -1 if window_size_right is None else window_size_right
        calls.append({"window": (left, right), "causal": causal, "max": (max_q, max_k), "dropout": dropout})
        assert not debug
        assert borders_q.dtype == borders_k.dtype == torch.int32
        assert query.is_contiguous()
        assert key.is_contiguous()
        assert value.is_contiguous()
        groups = query.shape[1] // key.shape[1]
        out = torch.empty_like(query)
        for start, end in zip(borders_q[:-1].tolist(), borders_q[1:].tolist(), strict=True):
            assert end - start <= max_q
            ahead = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = ahead >= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
            if left >= 0:
                seen &= ahead <= left
            if right >= 0:
                seen &= -ahead <= right
            for h in range(query.shape[1]):
                factor = query.shape[-1] ** -0.5 if scale is None else scale
                scores = query[start:end, h] @ key[start:end, h // groups].T * factor
                weights = scores.masked_fill(~seen, -torch.inf).softmax(1)
                out[start:end, h] = weights @ value[start:end, h // groups]
        return (out, torch.empty(query.shape[1], len(query)), torch.empty(2))

    return attend


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the stand-in attend; returns where it notes what it is told."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_stand_in(calls))
    monkeypatch.setattr(packed, "varlen_serves", lambda *_: True)
    return calls


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_the_flash_kernel_is_told_what_gives_the_padded_result(
    monkeypatch: pytest.MonkeyPatch, causal: bool, window: int | None, kv: int, scaling: float | None
) -> None:
    lengths = [6, 1, 4]
    q, k, v = inputs(sum(lengths), 2, kv)
    arguments = {"is_causal": causal, "sliding_window": window, "scaling": scaling, "packed": PackedMap(flat(lengths))}
    padded, _ = packed_attention(Layer(), q, k, v, None, **arguments)
    calls = as_on_a_gpu(monkeypatch)
    with torch.no_grad():
        out, _ = packed_attention(Layer(), q, k, v, None, **arguments)
        packed_attention(Layer(), q, k, v, None, **arguments, dropout=0.1)
    assert calls == [
        {
            "window": (-1 if window is None else window - 1, 0 if causal else -1 if window is None else window - 1),
            "causal": causal and window is None,
            "max": (6, 6),
            "dropout": dropout,
        }
        for dropout in (0.0, 0.1)
    ]
    torch.testing.assert_close(out, padded)


@pytest.mark.parametrize(
    ("lengths", "longest"),
    [([9, 6, 4, 1, 2], [9, 4]), ([5, 9, 2], [9, 4]), ([6, 9], [9]), ([4, 1, 3], [4]), ([1, 9, 4], [9, 4])],
)
@pytest.mark.parametrize("kv", [1, 2])
def test_what_is_short_from_somewhere_on_is_a_call_of_its_own(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], longest: list[int], kv: int
) -> None:
    monkeypatch.setattr(batch_module, "SHORT", 4)
    monkeypatch.setattr(varlen, "SHORT", 4)
    q, k, v = inputs(sum(lengths), 2, kv)
    arguments: dict[str, Any] = {"is_causal": True, "packed": PackedMap(flat(lengths))}
    padded, _ = packed_attention(Layer(), q, k, v, None, **arguments)
    calls = as_on_a_gpu(monkeypatch)
    with torch.no_grad():
        out, _ = packed_attention(Layer(), q, k, v, None, **arguments)
    assert [call["max"] for call in calls] == [(one, one) for one in longest]
    torch.testing.assert_close(out, padded)


def test_the_kernel_of_this_torch_takes_what_it_is_given() -> None:
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert names[3:13] == [
        "cum_seq_q",
        "cum_seq_k",
        "max_q",
        "max_k",
        "dropout_p",
        "is_causal",
        "return_debug_mask",
        "scale",
        "window_size_left",
        "window_size_right",
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("grad", [True, False])
def test_query_and_key_follow_the_value_to_half_precision(dropout: float, grad: bool) -> None:
    lengths = [2, 5, 1]  # under autocast rotary positions make fp32 of the first two
    q, k, v = (x.detach().float().requires_grad_(grad) for x in inputs(8))
    halves = [x.detach().bfloat16().requires_grad_(grad) for x in (q, k, v)]
    found = []
    for parts in ((q, k, v.bfloat16()), halves):
        torch.manual_seed(0)
        found.append(packed_attention(Layer(), *parts, None, dropout=dropout, packed=PackedMap(flat(lengths)))[0])
    assert found[0].dtype == torch.bfloat16
    assert torch.equal(*found)
    if grad:
        for out in found:
            out.float().square().sum().backward()
        for full, half in zip((q, k, v), halves, strict=True):
            assert full.grad is not None
            assert half.grad is not None
            assert torch.equal(full.grad, half.grad.float())


def test_on_cpu_the_kernel_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "varlen_attention", lambda *a: pytest.fail("the CUDA kernel on CPU"))
    q, k, v = (x.detach().bfloat16() for x in inputs(3))
    packed_attention(Layer(), q, k, v, None, packed=PackedMap(flat([2, 1])))
