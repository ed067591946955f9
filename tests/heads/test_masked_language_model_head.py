"""The head for masked tokens: loss and logits against transformers' own models and against all logits at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear
from transformers import AutoConfig, AutoModelForMaskedLM

from llm_arch.backbones.convolutional import ConvolutionalEncoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.collate import flat_batch
from llm_arch.heads import vocabulary
from llm_arch.heads.language import TokenScore
from llm_arch.heads.masked_language_model import MaskedLanguageModel, MaskPrediction
from llm_arch.task import Task
from llm_arch.types import Backbone, Batch, Hidden, LabelSpace, UserError

NONE = LabelSpace(())
V = 60
LENGTHS = [5, 2, 7]
PLACES, TARGETS = [1, 3, 5, 9, 13], [7, 0, 59, 20, 7]
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert"},
    "roberta": {"model_type": "roberta"},
    "modernbert": {"model_type": "modernbert", "cls_token_id": 2, "sep_token_id": 3},
    "electra": {"model_type": "electra", "embedding_size": 8},
    "bert, untied": {"model_type": "bert", "tie_word_embeddings": False},
}


def batch_of(layout: str = "flat", labelled: bool = True, places: list[int] = PLACES) -> Batch:
    ids = np.random.default_rng(0).integers(4, V, sum(LENGTHS))
    labels = {"positions": np.array(places, dtype=int), "targets": np.array(TARGETS[: len(places)], dtype=int)}
    batch = flat_batch(ids, None, np.array(LENGTHS), np.array([10, 11, 12]), layout, labels)
    return batch if labelled else replace(batch, labels={"positions": batch.labels["positions"]})


def task_of(backbone: Backbone | None = None, **options: Any) -> Task:
    """A task whose numbers are large enough to tell right from wrong."""
    made = backbone or Pretrained(config={"model_type": "bert", **SHAPE})
    task = Task(made, lambda size, labels: MaskedLanguageModel(size, labels, **options), NONE, dropout=0.0)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.3)
    return task


def all_logits(task: Task, batch: Batch) -> Tensor:
    """BERT's head on every cell."""
    head, table = task.head, task.backbone.embeddings.weight
    hidden = gelu(linear(task.backbone(batch).last_TD, head.dense.weight, head.dense.bias))
    normed = layer_norm(hidden, head.norm.normalized_shape, head.norm.weight, head.norm.bias, 1e-12)
    return linear(normed, table, head.bias)


# Loss


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_loss_is_that_of_all_logits_at_the_masks(layout: str) -> None:
    task = task_of()
    loss = task.loss(batch_of(layout))
    logits = all_logits(task, batch_of())
    expected = cross_entropy(logits[PLACES], torch.tensor(TARGETS), reduction="sum")
    torch.testing.assert_close(loss.sum, expected)
    assert loss.denominator == 5
    parameters = list(task.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss.sum, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of()
    found = []
    for at_once in (vocabulary.AT_ONCE, 2 * V, 1):
        monkeypatch.setattr(
            "llm_arch.heads.language.vocabulary_loss", lambda *a, n=at_once, **b: vocabulary.vocabulary_loss(*a, n, **b)
        )
        loss = task.loss(batch_of()).sum
        found.append([loss.detach(), *torch.autograd.grad(loss, list(task.parameters()))])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_only_masked_cells_are_computed() -> None:
    task, rows = task_of(), []
    task.head.dense.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    task.loss(batch_of())
    task.head.evaluate(task.backbone(batch_of()), batch_of())
    task(batch_of())
    assert rows == [5, 5, 5]


def test_without_a_mask() -> None:
    task = task_of()
    loss = task.loss(batch_of(places=[]))
    loss.sum.backward()
    assert float(loss.mean.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in task.head.parameters())


def test_under_autocast_the_loss_is_fp32() -> None:
    task = task_of()
    exact = task.loss(batch_of())
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(batch_of())
    assert loss.sum.dtype == torch.float32
    torch.testing.assert_close(loss.sum, exact.sum, rtol=0.05, atol=0)
    loss.sum.backward()
    assert {p.grad.dtype for p in task.parameters() if p.grad is not None} == {torch.float32}


@torch.no_grad()
def test_evaluation_in_one_pass_is_that_by_logits() -> None:
    task, batch = task_of(), batch_of()
    hidden = task.backbone(batch)
    loss, counted = task.head.evaluate(hidden, batch)
    torch.testing.assert_close(loss.mean, task.loss(batch).mean)
    for found, wanted in zip(counted, task.head.metric_inputs(task(batch), batch), strict=True):
        torch.testing.assert_close(found, wanted)
    metric = task.head.metrics()
    metric.update(*counted)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx({"perplexity": float(loss.mean.exp()), "accuracy": float(counted[1].float().mean())})
    assert (task.head.major, task.head.mode) == ("perplexity", "min")
    assert task.head.major in found


# The tie


def test_the_embeddings_are_registered_once() -> None:
    task = task_of()
    assert {name for name in task.state_dict() if name.startswith("head.")} == {
        "head.dense.weight",
        "head.dense.bias",
        "head.norm.weight",
        "head.norm.bias",
        "head.bias",
    }
    tables = [p for _, p in task.named_parameters(remove_duplicate=False) if p is task.backbone.embeddings.weight]
    assert len(tables) == 1
    assert task.head.ties_embeddings
    assert not any(isinstance(module, Backbone) for module in task.head.modules())


@torch.no_grad()
def test_a_copy_is_tied_to_its_own_embeddings() -> None:
    task = task_of()
    other = copy.deepcopy(task)
    before = task(batch_of())
    torch.testing.assert_close(other(batch_of()), before)
    other.backbone.embeddings.weight.add_(1)
    assert other.head.projection is other.backbone.embeddings.weight
    torch.testing.assert_close(task(batch_of()), before)
    torch.testing.assert_close(other(batch_of()), all_logits(other, batch_of())[PLACES])


def test_bound_again_it_keeps_its_weights() -> None:
    task = task_of()
    expected = task(batch_of())
    again = Task(task.backbone, lambda size, labels: task.head, NONE)
    torch.testing.assert_close(again(batch_of()), expected)


def test_embeddings_of_another_size() -> None:
    cnn = ConvolutionalEncoder(vocabulary_size=V, embedding_size=6, hidden_size=8)
    task = task_of(cnn)
    assert task.head.dense.weight.shape == (6, 8)
    logits = all_logits(task, batch_of())[PLACES]
    torch.testing.assert_close(task(batch_of()), logits)
    torch.testing.assert_close(task.loss(batch_of()).sum, cross_entropy(logits, torch.tensor(TARGETS), reduction="sum"))


# What a checkpoint brings along


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., nn.Module]:
    def save(name: str) -> nn.Module:
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**SHAPE | CONFIGS[name]))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.normal_(1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0, 0.3)
        model.tie_weights()
        model.save_pretrained(tmp_path)
        return model.eval()

    return save


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_that_of_transformers(
    name: str, save: Callable[..., nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(name)
    capsys.readouterr()
    task = Task(Pretrained(str(tmp_path)), MaskedLanguageModel, NONE)
    task.eval()
    batch = batch_of()
    total = 0.0
    for row, (start, length) in enumerate(zip(batch.starts.tolist(), LENGTHS, strict=True)):
        labels = torch.full((1, length), -100)
        for place, target in zip(PLACES, TARGETS, strict=True):
            if batch.segments[place] == row:
                labels[0, place - start] = target
        ids = batch.input_ids[None, start : start + length]
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        total = total + out.loss * (labels != -100).sum()
    torch.testing.assert_close(task.loss(batch).sum, torch.as_tensor(total), rtol=1e-5, atol=1e-5)
    assert task.head.ties_embeddings == (name != "bert, untied")
    assert "checkpoint" not in capsys.readouterr().out  # nothing is missing, nothing left out


def test_what_the_checkpoint_lacks_starts_anew_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Pretrained(config={"model_type": "bert", **SHAPE})
    found = {"dense.weight": torch.randn(16, 16), "bias": torch.randn(V), "other": torch.ones(1)}
    monkeypatch.setattr(backbone, "output_head", lambda kind: found)
    head = Task(backbone, MaskedLanguageModel, NONE).head
    assert torch.equal(head.dense.weight, found["dense.weight"])
    assert torch.equal(head.bias, found["bias"])
    assert torch.equal(head.norm.weight, torch.ones(16))
    said = capsys.readouterr().out
    assert "the checkpoint's head has no dense.bias, norm.bias, norm.weight; new weights there" in said
    assert "other of the checkpoint's head is not used" in said


def test_a_head_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Pretrained(config={"model_type": "bert", **SHAPE})
    monkeypatch.setattr(backbone, "output_head", lambda kind: {"dense.weight": torch.ones(4, 16)})
    with pytest.raises(UserError, match=r"has a dense.weight of shape \(4, 16\), this one needs \(16, 16\)"):
        Task(backbone, MaskedLanguageModel, NONE)


# Predictions


@torch.no_grad()
@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_predictions_name_the_most_probable_tokens(layout: str) -> None:
    task, batch = task_of(top_k=3), batch_of(layout, labelled=False)
    found = task.head.decode(task(batch), batch)
    chances = all_logits(task, batch_of())[PLACES].softmax(1)
    assert [p.index for p in found] == [10, 11, 12]
    fills = [fill for p in found if isinstance(p, MaskPrediction) for fill in p.fills]
    assert [len(p.fills) for p in found if isinstance(p, MaskPrediction)] == [2, 1, 2]
    for fill, chance in zip(fills, chances, strict=True):
        score, token = chance.topk(3)
        assert [t.id for t in fill] == token.tolist()
        assert [t.score for t in fill] == pytest.approx(score.tolist(), rel=1e-4)
    first = fills[0][0]
    assert found[0].to_dict()["fills"][0][0] == {"id": first.id, "score": first.score, "token": ""}


@torch.no_grad()
def test_a_row_without_mask_has_no_fills() -> None:
    task, batch = task_of(top_k=100), batch_of(labelled=False, places=[0, 8])
    found = task.head.decode(task(batch), batch)
    assert [len(p.fills) for p in found if isinstance(p, MaskPrediction)] == [1, 0, 1]
    assert isinstance(found[0], MaskPrediction)
    assert len(found[0].fills[0]) == V  # no more than there are
    assert isinstance(found[0].fills[0][0], TokenScore)


# Bad input


def test_a_causal_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="needs a backbone that sees what follows a token"):
        Task("tiny:gpt2", MaskedLanguageModel, NONE)
    with pytest.raises(UserError, match="needs a backbone that sees what follows a token"):
        Task(RecurrentEncoder(vocabulary_size=V, bidirectional=False), MaskedLanguageModel, NONE)


def test_data_of_another_kind() -> None:
    task, batch = task_of(), batch_of()
    hidden = Hidden(torch.zeros(sum(LENGTHS), 16))
    with pytest.raises(UserError, match="MaskedLanguageModel needs masked tokens, which the data module doesn't give"):
        task.head(hidden, replace(batch, labels={}))
    with pytest.raises(UserError, match="MaskedLanguageModel learns tokens, and the data module gives none"):
        task.head.loss(hidden, batch_of(labelled=False))
    with pytest.raises(UserError, match="language models predict tokens, but the data has labels: a, b"):
        MaskedLanguageModel(16, LabelSpace(("a", "b")))
    with pytest.raises(UserError, match="top_k must be at least 1, got 0"):
        MaskedLanguageModel(16, NONE, top_k=0)
