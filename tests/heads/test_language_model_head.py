"""The head for next tokens: loss and logits against transformers' own models and against all logits at once."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import AutoConfig, AutoModelForCausalLM

from llm_arch.backbones.convolutional import ConvolutionalEncoder, TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.collate import flat_batch
from llm_arch.heads.language_model import LanguageModel, NextTokenPrediction
from llm_arch.task import Task
from llm_arch.types import Backbone, Batch, LabelSpace, UserError

NONE = LabelSpace(())
V = 60
LENGTHS = [5, 1, 7]
T = sum(LENGTHS)
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": V,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BACKBONES: dict[str, Any] = {
    "gpt2": lambda: Pretrained(config=GPT2),
    "llama": lambda: Pretrained(config=LLAMA),
    "lstm": lambda: RecurrentEncoder(vocabulary_size=V, hidden_size=8, bidirectional=False, dropout=0.0),
    "gru, other embeddings": lambda: RecurrentEncoder(
        vocabulary_size=V, hidden_size=8, embedding_size=6, cell="gru", bidirectional=False, dropout=0.0
    ),
    "cnn": lambda: ConvolutionalEncoder(vocabulary_size=V, hidden_size=8, causal=True, dropout=0.0),
}


def tokens(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(4, V, T + len(LENGTHS))


def batch_of(layout: str = "flat", **labels: Any) -> Batch:
    """Pieces of a token more than they have cells, which is only a target."""
    pieces = np.split(tokens(), np.cumsum([n + 1 for n in LENGTHS])[:-1])
    ids = np.concatenate([piece[:-1] for piece in pieces])
    named = {"targets": np.concatenate([piece[1:] for piece in pieces]), **labels}
    return flat_batch(ids, None, np.array(LENGTHS), np.array([10, 11, 12]), layout, named)


def task_of(backbone: Backbone | None = None, **options: Any) -> Task:
    """A task whose numbers are large enough to tell right from wrong."""
    made = backbone or BACKBONES["gpt2"]()
    task = Task(made, lambda size, labels: LanguageModel(size, labels, **options), NONE)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.3)
    return task.eval()


def all_logits(task: Task, batch: Batch) -> Tensor:
    hidden = task.backbone(batch).last_TD
    if hasattr(task.head.project, "weight"):
        hidden = linear(hidden, task.head.project.weight)
    return linear(hidden, task.backbone.embeddings.weight if task.head.weight is None else task.head.weight)


# Loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_loss_is_that_of_all_logits(name: str, tied: bool) -> None:
    task, batch = task_of(BACKBONES[name](), tied=tied), batch_of()
    loss = task.loss(batch)
    expected = cross_entropy(all_logits(task, batch), batch.labels["targets"], reduction="sum")
    torch.testing.assert_close(loss.sum, expected)
    assert loss.denominator == T
    parameters = list(task.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss.sum, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    padded = task.loss(batch_of("padded"))
    torch.testing.assert_close(padded.sum, loss.sum)
    assert padded.denominator == T


def test_padding_is_no_target_even_if_nobody_tells() -> None:
    task, batch = task_of(), batch_of("padded")
    targets = torch.zeros(len(batch.input_ids), dtype=torch.long)
    targets[batch.labels["positions"]] = batch.labels["targets"]
    loss = task.loss(replace(batch, labels={"targets": targets}))
    torch.testing.assert_close(loss.sum, task.loss(batch).sum)
    assert loss.denominator == T


def test_only_some_cells_may_count() -> None:
    task, whole = task_of(), batch_of()
    places = np.array([2, 4, 12])
    batch = batch_of(positions=places, targets=whole.labels["targets"].numpy()[places])
    loss, logits = task.loss(batch), all_logits(task, whole)
    torch.testing.assert_close(
        loss.sum, cross_entropy(logits[places], whole.labels["targets"][places], reduction="sum")
    )
    assert loss.denominator == 3
    torch.testing.assert_close(task(batch), logits[places])
    torch.testing.assert_close(task(whole), logits)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_later_token_moves_no_earlier_logit(name: str) -> None:
    task, batch = task_of(BACKBONES[name]()), batch_of()
    before = task(batch)
    for place in range(T):
        ids = batch.input_ids.clone()
        ids[place] = 4 + (ids[place] - 3) % (V - 4)
        moved = (task(replace(batch, input_ids=ids)) - before).abs().amax(1) > 1e-5
        same_sequence = batch.segments == batch.segments[place]
        assert not moved[(torch.arange(T) < place) | ~same_sequence].any()
        assert moved[place]


@torch.no_grad()
def test_evaluation_in_one_pass_is_that_by_logits() -> None:
    task = task_of()
    batch = batch_of(text_bytes=np.array([9.0, 2.0, 20.0]))
    loss, counted = task.head.evaluate(task.backbone(batch), batch)
    torch.testing.assert_close(loss.mean, task.loss(batch).mean)
    for found, wanted in zip(counted, task.head.metric_inputs(task(batch), batch), strict=True):
        torch.testing.assert_close(found, wanted)
    metric = task.head.metrics()
    metric.update(*counted)
    mean = float(loss.mean)
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(
        {
            "perplexity": np.exp(mean),
            "accuracy": float((task(batch).argmax(1) == batch.labels["targets"]).float().mean()),
            "bits_per_byte": mean * T / np.log(2) / 31,
        }
    )


# The weight


def test_a_tied_head_has_no_weights() -> None:
    task = task_of()
    assert not task.head.state_dict()
    assert task.head.ties_embeddings
    other = copy.deepcopy(task)
    assert other.head.projection is other.backbone.embeddings.weight


def test_an_untied_head_has_a_weight_of_its_own() -> None:
    task = Task(BACKBONES["lstm"](), lambda size, labels: LanguageModel(size, labels, tied=False), NONE)
    assert {name: p.shape for name, p in task.head.named_parameters()} == {"weight": (V, 8)}
    assert not task.head.ties_embeddings
    assert 0.01 < float(task.head.weight.detach().std()) < 0.03


@pytest.mark.parametrize(
    "config", [GPT2, {**GPT2, "tie_word_embeddings": False}, LLAMA, {**LLAMA, "tie_word_embeddings": True}]
)
def test_loss_is_that_of_transformers(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.3)
    model.tie_weights()
    model.save_pretrained(tmp_path)
    task = Task(Pretrained(str(tmp_path)), LanguageModel, NONE).eval()
    assert task.head.tied == (task.head.weight is None) == model.config.tie_word_embeddings
    assert task.head.init_args["tied"] == task.head.tied  # a model directory says it
    pieces = torch.from_numpy(tokens()).split([n + 1 for n in LENGTHS])
    losses = [model(input_ids=piece[None], labels=piece[None]).loss * (len(piece) - 1) for piece in pieces]
    torch.testing.assert_close(task.loss(batch_of()).sum, torch.stack(losses).sum(), rtol=1e-5, atol=1e-4)
    assert "checkpoint" not in capsys.readouterr().out


def test_from_scratch_the_head_is_tied_whatever_the_configuration_says() -> None:
    head = Task(Pretrained(config={**LLAMA, "tie_word_embeddings": False}), LanguageModel, NONE).head
    assert head.weight is None
    assert head.init_args["tied"] is True


def test_a_tied_checkpoint_may_be_untied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**GPT2)).save_pretrained(tmp_path)
    capsys.readouterr()
    task = Task(Pretrained(str(tmp_path)), lambda size, labels: LanguageModel(size, labels, tied=False), NONE)
    assert torch.equal(task.head.weight, task.backbone.embeddings.weight)
    assert task.head.weight is not task.backbone.embeddings.weight
    assert "checkpoint" not in capsys.readouterr().out


def test_a_weight_that_is_not_wanted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA)).save_pretrained(tmp_path)
    task = Task(Pretrained(str(tmp_path)), lambda size, labels: LanguageModel(size, labels, tied=True), NONE)
    assert task.head.weight is None
    assert "LanguageModel: weight of the checkpoint's head is not used" in capsys.readouterr().out


def test_a_bias_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, bias = BACKBONES["gpt2"](), torch.randn(V)
    monkeypatch.setattr(backbone, "output_head", lambda kind: {"bias": bias})
    task, batch = Task(backbone, LanguageModel, NONE).eval(), batch_of()
    torch.testing.assert_close(task(batch), all_logits(task, batch) + bias)
    expected = cross_entropy(all_logits(task, batch) + bias, batch.labels["targets"], reduction="sum")
    torch.testing.assert_close(task.loss(batch).sum, expected)


# Predictions


@torch.no_grad()
@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("told", [True, False])
def test_predictions_are_of_what_comes_after_the_last_token(layout: str, told: bool) -> None:
    task, batch = task_of(top_k=3), batch_of(layout)
    batch = replace(batch, labels={"positions": batch.starts + batch.lengths - 1} if told else {})
    found = task.head.decode(task(batch), batch)
    chances = all_logits(task, batch_of()).softmax(1)[np.cumsum(LENGTHS) - 1]
    assert [p.index for p in found] == [10, 11, 12]
    for prediction, chance in zip(found, chances, strict=True):
        assert isinstance(prediction, NextTokenPrediction)
        score, token = chance.topk(3)
        assert [t.id for t in prediction.tokens] == token.tolist()
        assert [t.score for t in prediction.tokens] == pytest.approx(score.tolist(), rel=1e-4)
    assert found[0].to_dict()["tokens"][0].keys() == {"id", "score", "token"}


# Bad input


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pretrained("tiny:bert"),
        lambda: RecurrentEncoder(vocabulary_size=V),
        lambda: ConvolutionalEncoder(vocabulary_size=V),
        lambda: TextCNN(vocabulary_size=V),
    ],
    ids=["bert", "bilstm", "cnn", "textcnn"],
)
def test_a_backbone_that_looks_ahead_is_refused(make: Any) -> None:
    with pytest.raises(UserError, match="needs a backbone whose states depend on no later token, and this one's do"):
        Task(make(), LanguageModel, NONE)


def test_data_of_another_kind() -> None:
    task, batch = task_of(), replace(batch_of(), labels={})
    with pytest.raises(UserError, match="LanguageModel learns tokens, and the data module gives none"):
        task.loss(batch)
    with pytest.raises(UserError, match="language models predict tokens, but the data has labels: a, b"):
        LanguageModel(16, LabelSpace(("a", "b")))
    with pytest.raises(UserError, match="top_k must be at least 1, got 0"):
        LanguageModel(16, NONE, top_k=0)
