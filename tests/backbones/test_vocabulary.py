"""Embeddings for tokens added to a tokenizer: old ones stay, new ones lie near their mean, and training moves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from llm_arch.adamw import RowAdamW
from llm_arch.backbones.convolutional import ConvolutionalEncoder, TextCNN
from llm_arch.backbones.load import backbone_of
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.backbones.vocabulary import new_rows
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.optim import make_embeddings_sparse, parameter_groups
from llm_arch.task import Task
from llm_arch.types import Backbone, Batch, LabelSpace

OLD, NEW = 60, 64
COMMON: dict[str, Any] = {
    "vocab_size": OLD,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def transformers_model(kind: str, **more: Any) -> Callable[[], Backbone]:
    return lambda: Pretrained(config={**COMMON, "model_type": kind, **more})


MAKE: dict[str, Callable[[], Backbone]] = {
    "bert": transformers_model("bert"),
    "roberta": transformers_model("roberta"),
    "gpt2": transformers_model("gpt2"),
    "modernbert": transformers_model("modernbert", cls_token_id=2, sep_token_id=3),
    "llama": transformers_model("llama"),
    "albert": transformers_model("albert", embedding_size=8),
    "textcnn": lambda: TextCNN(vocabulary_size=OLD, filters=4, widths=(2, 3)),
    "cnn": lambda: ConvolutionalEncoder(vocabulary_size=OLD, hidden_size=8, num_layers=2, embedding_size=6),
    "bilstm": lambda: RecurrentEncoder(vocabulary_size=OLD, hidden_size=8),
}


def batch_of(*rows: list[int], labels: dict[str, Tensor] | None = None) -> Batch:
    return make_batch(
        {"input_ids": list(rows), "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}, labels=labels
    )


@pytest.mark.parametrize("name", MAKE)
def test_old_tokens_give_what_they_gave_and_new_ones_have_rows(name: str) -> None:
    backbone = MAKE[name]().eval()
    before, batch = backbone.embeddings.weight.detach().clone(), batch_of([5, 6, 7, 8], [9, 5])
    with torch.no_grad():
        states = backbone(batch).last_TD
        backbone.grow(NEW)
        assert backbone.embeddings.weight.shape == (NEW, before.shape[1])
        assert backbone.embeddings.num_embeddings == NEW
        torch.testing.assert_close(backbone.embeddings.weight[:OLD], before, rtol=0, atol=0)
        torch.testing.assert_close(backbone(batch).last_TD, states, rtol=0, atol=0)
        assert backbone(batch_of([OLD, 6, NEW - 1])).last_TD.isfinite().all()
    assert backbone.embeddings.weight.requires_grad


@pytest.mark.parametrize("name", ["bert", "bilstm"])
def test_the_seed_fixes_the_new_rows(name: str) -> None:
    backbone = MAKE[name]()
    state = {k: v.clone() for k, v in backbone.state_dict().items()}
    found = []
    for seed in (0, 0, 1):
        again = MAKE[name]()
        again.load_state_dict(state)
        torch.manual_seed(seed)
        again.grow(NEW)
        found.append(again.embeddings.weight[OLD:].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["bert", "cnn"])
def test_enough_room_is_left_alone(name: str) -> None:
    backbone = MAKE[name]()
    table = backbone.embeddings
    random = torch.get_rng_state()
    for vocabulary in (OLD - 5, OLD):
        backbone.grow(vocabulary)
    assert backbone.embeddings is table
    assert len(table.weight) == OLD
    assert torch.equal(torch.get_rng_state(), random)


def test_new_rows_lie_near_the_mean_and_apart_from_each_other() -> None:
    old_VD = torch.randn(500, 8) * torch.arange(1, 9) + 3
    rows_ND = new_rows(old_VD, 4000)
    spread_D = (rows_ND - old_VD.mean(0)).pow(2).mean(0).sqrt()
    torch.testing.assert_close(spread_D, 0.1 * old_VD.std(0), rtol=0.06, atol=0)
    torch.testing.assert_close(rows_ND.mean(0), old_VD.mean(0), rtol=0, atol=5 * 0.1 * 8 / math.sqrt(4000))
    assert len(rows_ND.unique(dim=0)) == 4000
    assert not rows_ND.requires_grad


@pytest.mark.parametrize("name", MAKE)
def test_a_grown_backbone_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    backbone = MAKE[name]()
    backbone.grow(NEW)
    record = {"class_path": backbone.class_path, **backbone.save(tmp_path)}
    loaded = backbone_of(tmp_path, record, ()).eval()
    batch = batch_of([NEW - 1, 5, OLD], [9, NEW - 2])
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch).last_TD, backbone.eval()(batch).last_TD, rtol=0, atol=0)
    loaded.grow(NEW)
    assert loaded.embeddings.num_embeddings == NEW


def test_the_configuration_knows_and_plain_transformers_loads_it(tmp_path: Path) -> None:
    backbone = MAKE["bert"]()
    backbone.grow(NEW)
    assert isinstance(backbone, Pretrained)
    assert backbone.config.vocab_size == NEW
    backbone.set_dropout(0.3)  # builds the model anew from its configuration
    assert backbone.embeddings.num_embeddings == NEW
    backbone.save(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert plain.config.vocab_size == NEW
    ids = torch.tensor([[NEW - 1, 5, OLD]])
    with torch.no_grad():
        expected = plain(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(backbone.eval()(batch_of(ids[0].tolist())).last_TD, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "bilstm"])
def test_sparse_steps_move_the_new_rows_they_see_and_no_others(name: str) -> None:
    big = {"bert": lambda: Pretrained(config={**COMMON, "model_type": "bert", "vocab_size": 1200})}
    backbone = big.get(name, lambda: RecurrentEncoder(vocabulary_size=1200, hidden_size=8))()
    task = Task(backbone, SequenceClassification, LabelSpace(("a", "b")), vocabulary=1204)
    assert make_embeddings_sparse(task) != []
    before = backbone.embeddings.weight.detach().clone()
    assert len(before) == 1204
    optimizer = RowAdamW(parameter_groups(task, 0.01), lr=0.01)
    loss = task.loss(batch_of([1200, 5], [1203, 5], labels={"label": torch.tensor([0, 1])}))
    loss.mean.backward()
    assert backbone.embeddings.weight.grad is not None
    assert backbone.embeddings.weight.grad.is_sparse
    optimizer.step()
    moved = (backbone.embeddings.weight.detach() != before).any(1).nonzero()[:, 0].tolist()
    assert moved == [5, 1200, 1203]
