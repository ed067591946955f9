"""Attention in groups of like length against the formula, sequence by sequence; dropout against a fixed mask."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_arch.backbones import grouped, packed
from llm_arch.backbones.grouped import LengthGroups, evaluation_attention, training_attention
from llm_arch.data.collate import make_batch

MANY = st.lists(st.integers(1, 24), min_size=1, max_size=30)
SCALE = 0.4


def inputs(tokens: int, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(tokens, heads, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    return q, k, v


def groups_of(lengths: list[int], causal: bool = False, window: int | None = None) -> LengthGroups:
    """Many small groups, as long sequences would have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "_CALLS", 100)
        return LengthGroups(torch.tensor(lengths), 2, causal, window, torch.float64)


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], causal: bool, window: int | None) -> Tensor:
    rows, start = [], 0
    for n in lengths:
        one = [x[start : start + n].transpose(0, 1) for x in (q, k, v)]
        distance = torch.arange(n)[:, None] - torch.arange(n)
        seen = torch.ones(n, n, dtype=torch.bool)
        if causal:
            seen &= distance >= 0
        if window is not None:
            seen &= distance.abs() < window
        scores = (one[0] @ one[1].transpose(1, 2) * SCALE).masked_fill(~seen, float("-inf"))
        rows.append((scores.softmax(-1) @ one[2]).transpose(0, 1))
        start += n
    return torch.cat(rows)


@settings(max_examples=40, deadline=None)
@given(lengths=MANY, causal=st.booleans(), window=st.sampled_from([None, 1, 5, 100]))
def test_both_ways_are_the_formula(lengths: list[int], causal: bool, window: int | None) -> None:
    q, k, v = inputs(sum(lengths))
    groups = groups_of(lengths, causal, window)
    expected = plain(q, k, v, lengths, causal, window)
    out = training_attention(q, k, v, groups, SCALE, 0.0)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(evaluation_attention(q, k, v, groups, SCALE), expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, (q, k, v), upstream) for y in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_with_dropout_are_those_of_the_same_mask(causal: bool) -> None:
    lengths = [20, 1, 2, 3, 3, 1, 2]
    groups = groups_of(lengths, causal)
    assert len(groups.groups) > 1

    def attend(*parts: Any) -> Tensor:
        torch.manual_seed(5)
        return training_attention(*parts, groups, SCALE, 0.3)

    assert torch.autograd.gradcheck(attend, inputs(sum(lengths)))


def test_dropout_falls_on_single_weights_and_keeps_the_mean() -> None:
    groups = LengthGroups(torch.tensor([300]), 1, False, None, torch.float64)
    q, k, _ = inputs(300, 1)
    with torch.no_grad():
        out = training_attention(q, k, torch.eye(300, dtype=torch.float64)[:, None, :3], groups, 0.0, 0.25)
    kept = out != 0  # with values of the unit matrix and equal scores, the weights themselves
    assert out[kept].unique().tolist() == [pytest.approx(1 / 300 / 0.75, rel=1e-4)]
    assert abs(float(kept.double().mean()) - 0.75) < 0.06


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=20), heads=st.sampled_from([1, 12]))
def test_no_other_cut_costs_less(lengths: list[int], heads: int) -> None:
    def cost(borders: list[int]) -> float:
        sizes = [(first, last) for first, last in pairwise(borders)]
        return sum(grouped._CALLS + heads * (b - a) * max(16, math.ceil(lengths[a] / 8) * 8) ** 2 for a, b in sizes)

    lengths.sort(reverse=True)
    inner = range(4, len(lengths), 4)
    choices = [[0, *c, len(lengths)] for n in range(len(inner) + 1) for c in combinations(inner, n)]
    cut = grouped._cut(lengths, heads)
    assert cost([0, *(last for _, last in cut)]) == min(map(cost, choices))
    assert [i for first, last in cut for i in range(first, last)] == list(range(len(lengths)))


def test_little_is_empty() -> None:
    lengths = torch.randint(4, 60, (64,))
    groups = LengthGroups(lengths, 12, False, None, torch.float32)
    assert sum(g.size for g in groups.groups) == 64
    assert len(groups.gaps) < 0.3 * len(groups.sources) < 0.3 * 12 * 64 * int(lengths.max())


@pytest.mark.parametrize("lengths", [[16], [32, 32, 32], [24, 24]])
def test_full_groups_need_no_mask(lengths: list[int]) -> None:
    groups = LengthGroups(torch.tensor(lengths), 2, False, None, torch.float32)
    assert [g.mask for g in groups.groups] == [None]
    assert len(groups.gaps) == 0


def test_shapes_recur() -> None:
    shapes = [
        {(g.size, g.longest) for g in LengthGroups(torch.randint(3, 60, (32,)), 12, False, None, torch.float32).groups}
        for _ in range(30)
    ]
    assert len(set.union(*shapes[:15])) < 40
    seen = set.union(*shapes[:15])
    assert sum(len(s - seen) for s in shapes[15:]) < 0.2 * sum(map(len, shapes[15:]))


def test_bfloat16_stays_near() -> None:
    lengths = [9, 4, 7, 7, 2, 2]
    parts = inputs(sum(lengths))
    rough = [x.detach().bfloat16().requires_grad_() for x in parts]
    exact = [x.detach().float().double().requires_grad_() for x in rough]
    out = training_attention(*rough, LengthGroups(torch.tensor(lengths), 2, False, None, torch.bfloat16), SCALE, 0.0)
    expected = plain(*exact, lengths, False, None)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.03)
    out.sum().backward()
    expected.sum().backward()
    for one, other in zip(rough, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=0, atol=0.05)


def test_long_sequences_without_dropout_keep_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise AssertionError("the weights are kept")

    lengths = [6, 3]
    columns = {"input_ids": [[1] * n for n in lengths], "token_type_ids": [None] * 2, "index": [0, 1]}
    where = packed.PackedMap(make_batch(columns, "flat"))
    q, k, v = inputs(9)
    monkeypatch.setattr(packed, "_KEEP_WEIGHTS_UP_TO", 5)
    monkeypatch.setattr(packed, "training_attention", refuse)
    shaped = [x.transpose(0, 1)[None] for x in (q, k, v)]
    out, _ = packed.packed_attention(torch.nn.Module(), *shaped, None, scaling=SCALE, packed=where)
    torch.testing.assert_close(out[0], plain(q, k, v, lengths, False, None), rtol=0, atol=1e-12)
    out.sum().backward()
    with pytest.raises(AssertionError, match="kept"):
        packed.packed_attention(torch.nn.Module(), *shaped, None, dropout=0.1, packed=where)
