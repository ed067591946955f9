"""BERT's two tasks at once: loss and metrics against transformers' own model and numbers worked out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForPreTraining

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import flat_batch
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.labels import LabelPrediction
from llm_arch.task import Task
from llm_arch.types import Batch, LabelSpace, UserError

PAIRS = LabelSpace(("next", "random"))
V = 60
LENGTHS = [6, 4, 8]
PLACES, TARGETS, PAIR_LABELS = [1, 3, 7, 12, 15], [7, 0, 59, 20, 7], [0, 1, 1]
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}


def batch_of(layout: str = "flat") -> Batch:
    ids = np.random.default_rng(0).integers(4, V, sum(LENGTHS))
    types = np.concatenate([np.repeat([0, 1], [n // 2, n - n // 2]) for n in LENGTHS])
    labels = {"positions": np.array(PLACES), "targets": np.array(TARGETS), "label": np.array(PAIR_LABELS)}
    return flat_batch(ids, types, np.array(LENGTHS), np.array([10, 11, 12]), layout, labels)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    made = AutoModelForPreTraining.from_config(AutoConfig.for_model(**BERT)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(1.0 if "Norm" in name and name.endswith("weight") else 0.0, 0.3)
    made.tie_weights()
    made.save_pretrained(tmp_path)
    return made


@pytest.fixture
def task(model: Any, tmp_path: Path) -> Task:
    """The same model; what is of pairs is copied by hand."""
    made = Task(Pretrained(str(tmp_path)), BertPretraining, PAIRS).eval()
    made.head.pooler.load_state_dict(model.bert.pooler.dense.state_dict())
    made.head.classify.load_state_dict(model.cls.seq_relationship.state_dict())
    return made


def of_transformers(model: Any, batch: Batch) -> tuple[Any, Any]:
    """(M, V) logits of tokens and (B, 2) of pairs."""
    outs = [
        model(input_ids=ids[None], token_type_ids=types[None], attention_mask=torch.ones_like(ids)[None])
        for ids, types in zip(batch.input_ids.split(LENGTHS), batch.token_type_ids.split(LENGTHS), strict=True)
    ]
    tokens = torch.cat([out.prediction_logits[0] for out in outs])[PLACES]
    return tokens, torch.cat([out.seq_relationship_logits for out in outs])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_loss_is_that_of_transformers(model: Any, task: Task, layout: str) -> None:
    tokens, pairs = of_transformers(model, batch_of())
    expected = cross_entropy(tokens, torch.tensor(TARGETS)) + cross_entropy(pairs, torch.tensor(PAIR_LABELS))
    loss = task.loss(batch_of(layout))
    torch.testing.assert_close(loss.mean, expected, rtol=1e-5, atol=1e-5)
    assert loss.denominator == 5
    names = [name for name, _ in task.head.named_parameters()]
    found = torch.autograd.grad(loss.mean, list(task.head.parameters()))
    theirs = {
        "dense": model.cls.predictions.transform.dense,
        "norm": model.cls.predictions.transform.LayerNorm,
        "pooler": model.bert.pooler.dense,
        "classify": model.cls.seq_relationship,
    }
    places = [
        getattr(theirs[name.split(".")[0]], name.split(".")[1]) if "." in name else model.cls.predictions.bias
        for name in names
    ]
    for mine, wanted in zip(found, torch.autograd.grad(expected, places), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_pairs_weigh_by_the_masked_tokens_of_their_batch(task: Task) -> None:
    loss = task.loss(batch_of())
    masked = task.head.token_loss(task.backbone(batch_of()), batch_of())
    pairs = cross_entropy(task(batch_of()), torch.tensor(PAIR_LABELS))
    torch.testing.assert_close(loss.sum, masked.sum + 5 * pairs)


@torch.no_grad()
def test_metrics(model: Any, task: Task) -> None:
    tokens, pairs = of_transformers(model, batch_of())
    loss, counted = task.head.evaluate(task.backbone(batch_of()), batch_of())
    torch.testing.assert_close(loss.mean, task.loss(batch_of()).mean)
    metric = task.head.metrics()
    metric.update(*counted)
    metric.update(*counted)
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(
        {
            "perplexity": math.exp(cross_entropy(tokens, torch.tensor(TARGETS))),
            "mlm_accuracy": float((tokens.argmax(1) == torch.tensor(TARGETS)).float().mean()),
            "pair_accuracy": float((pairs.argmax(1) == torch.tensor(PAIR_LABELS)).float().mean()),
        },
        rel=1e-5,
    )
    assert task.head.major in metric.compute()


@torch.no_grad()
def test_predictions_are_of_pairs(model: Any, task: Task) -> None:
    batch = replace(batch_of(), labels={"positions": torch.zeros(0, dtype=torch.long)})
    chances = of_transformers(model, batch)[1].softmax(1).tolist()
    found = task.head.decode(task(batch), batch)
    assert [p.index for p in found] == [10, 11, 12]
    for prediction, chance in zip(found, chances, strict=True):
        assert isinstance(prediction, LabelPrediction)
        assert list(prediction.scores) == ["next", "random"]
        assert list(prediction.scores.values()) == pytest.approx(chance, rel=1e-4)
        assert prediction.score == max(prediction.scores.values())
        assert prediction.scores[prediction.label] == prediction.score
        assert prediction.to_dict().keys() == {"label", "score", "scores"}


def test_the_masked_head_goes_on_from_the_checkpoint(model: Any, task: Task) -> None:
    assert torch.equal(task.head.dense.weight, model.cls.predictions.transform.dense.weight)
    assert torch.equal(task.head.bias, model.cls.predictions.bias)
    assert not [name for name in task.head.state_dict() if "embed" in name or name == "weight"]


def test_bad_input(task: Task) -> None:
    with pytest.raises(UserError, match=r"needs pairs with one of at least two labels, the data has \[\]"):
        BertPretraining(16, LabelSpace(()))
    with pytest.raises(UserError, match="BertPretraining needs pairs with a label, which the data module doesn't give"):
        task.loss(replace(batch_of(), labels={k: v for k, v in batch_of().labels.items() if k != "label"}))
    with pytest.raises(UserError, match="BertPretraining needs masked tokens, which the data module doesn't give"):
        task.loss(replace(batch_of(), labels={"label": torch.tensor(PAIR_LABELS)}))
    with pytest.raises(UserError, match="needs a backbone that sees what follows a token"):
        Task("tiny:gpt2", BertPretraining, PAIRS)
