"""Attention relations against transformers' own projections and formulas written out token by token."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.compression import attention_relations
from llm_arch.compression.attention_relations import (
    RelationRecorder,
    attending_layer,
    columns_of,
    relation_divergence,
    with_relations,
)
from llm_arch.compression.structure import Structure
from llm_arch.data.collate import make_batch
from llm_arch.types import Batch, UserError

LENGTHS = [4, 1, 6, 3]


def batch_of(layout: str = "flat") -> Batch:
    ids = [[10 * row + place + 1 for place in range(length)] for row, length in enumerate(LENGTHS)]
    columns: dict[str, Any] = {"input_ids": ids, "token_type_ids": [None] * 4, "index": [0, 1, 2, 3]}
    return make_batch(columns, layout)


CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4},
    "modernbert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8},
    "llama": {
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8},
        "num_key_value_heads": 2,
    },
}


def model_of(kind: str) -> Pretrained:
    return Pretrained(config={"model_type": kind, "vocab_size": 60, **CONFIGS[kind]}).eval()


def projected(backbone: Pretrained, states_TD: Tensor) -> list[Tensor]:
    """Of the second layer, from the states before it, by the layer's own modules."""
    layer: Any = backbone.layers[1]
    kind = backbone.config.model_type
    if kind == "bert":
        own = layer.attention.self
        return [one(states_TD) for one in (own.query, own.key, own.value)]
    if kind == "gpt2":
        return list(layer.attn.c_attn(layer.ln_1(states_TD)).chunk(3, 1))
    if kind == "modernbert":
        return list(layer.attn.Wqkv(layer.attn_norm(states_TD)).chunk(3, 1))
    own, states_TD = layer.self_attn, layer.input_layernorm(states_TD)
    return [one(states_TD) for one in (own.q_proj, own.k_proj, own.v_proj)]


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("layout", ["flat", "padded", "inside"])
@torch.no_grad()
def test_queries_keys_and_values(kind: str, layout: str) -> None:
    backbone = model_of(kind)
    batch = batch_of("padded" if layout == "padded" else "flat")
    if layout == "inside":  # the batch is flat, and the model runs padded
        backbone.layout = "padded"
    hidden, found = with_relations(backbone, 2, batch, partial(backbone, batch, all_hidden=True))
    states = hidden.layers[1] if batch.valid is None else hidden.layers[1][batch.valid]
    assert found is not None
    assert [one.shape[1] for one in found] == ([16, 8, 8] if kind == "llama" else [16] * 3)
    for ours, theirs in zip(found, projected(backbone, states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {*columns_of(attending_layer(backbone, 2))} == {one.shape[1] for one in found}
    assert not any(one.linear._forward_hooks for one in attending_layer(backbone, 2).attention_in)
    assert with_relations(backbone, None, batch, partial(backbone, batch))[1] is None


def naive(student: list[Tensor], teacher: list[Tensor], heads: int) -> float:
    total, start = 0.0, 0
    for length in LENGTHS:
        for pair in zip(student, teacher, strict=True):
            for head in range(heads):
                logs = []
                for one in pair:
                    d = one.shape[1] // heads
                    part = one[start : start + length, head * d : (head + 1) * d].double()
                    logs.append((part @ part.T / d**0.5).log_softmax(1))
                ours, theirs = logs
                total += float((theirs.exp() * (theirs - ours)).sum())
        start += length
    return total / (3 * heads * sum(LENGTHS))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_divergence(heads: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_relations, "_AT_ONCE", at_once)
    T = sum(LENGTHS)
    student = [torch.randn(T, width, requires_grad=True) for width in (8, 4, 4)]
    teacher = [torch.randn(T, 12) for _ in range(3)]
    loss = relation_divergence(student, teacher, batch_of(), heads)
    assert float(loss.detach()) == pytest.approx(naive([one.detach() for one in student], teacher, heads), rel=1e-4)
    loss.backward()
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in student)
    same = relation_divergence(teacher, teacher, batch_of(), heads)
    assert float(same) == pytest.approx(0.0, abs=1e-6)


def test_heads_that_do_not_divide() -> None:
    student, teacher = [torch.zeros(14, 8)] * 3, [torch.zeros(14, 12)] * 3
    with pytest.raises(UserError, match="relation_heads is 3, which does not divide the 8 columns of the student's"):
        relation_divergence(student, teacher, batch_of(), 3)
    with pytest.raises(UserError, match="relation_heads is 8, which does not divide the 12 columns of the teacher's"):
        relation_divergence(student, teacher, batch_of(), 8)


def test_a_student_is_seen_when_it_trains_and_only_then() -> None:
    backbone = model_of("bert").train()
    recorder, batch = RelationRecorder(backbone), batch_of()
    with torch.no_grad():
        backbone(batch)
    with pytest.raises(RuntimeError, match="has not run in train mode"):
        recorder.take(batch)
    backbone.eval()(batch)
    with pytest.raises(RuntimeError, match="has not run in train mode"):
        recorder.take(batch)
    backbone.train()(batch)
    sum(one.sum() for one in recorder.take(batch)).backward()  # type: ignore[union-attr]
    below: Any = backbone.layers[0]
    assert below.output.dense.weight.grad is not None
    copy.deepcopy(backbone)  # as pruning does between two steps
    # A layer less, and heads less: the last one that is there is seen.
    whole = Structure.whole(backbone.model)
    backbone.prune(Structure((0,), ((0, 1),), (whole.neurons[0],), whole.of))
    backbone(batch)
    assert [one.shape for one in recorder.take(batch)] == [(14, 8)] * 3
    recorder.close()
    assert not backbone._forward_hooks
    assert not backbone._forward_pre_hooks


def test_models_and_layers_without() -> None:
    with pytest.raises(UserError, match=r"and not of RecurrentEncoder; set the weight of relations to 0"):
        attending_layer(RecurrentEncoder(vocabulary_size=10), -1)
    backbone = model_of("bert")
    with pytest.raises(UserError, match="there are 2 layers, and layer 2 for attention relations is none of them"):
        attending_layer(backbone, 3)
    whole = Structure.whole(backbone.model)
    backbone.prune(Structure((0, 1), (whole.heads[0], ()), whole.neurons, whole.of))
    with pytest.raises(UserError, match="a layer without attention heads has no attention relations"):
        attending_layer(backbone, -1)
