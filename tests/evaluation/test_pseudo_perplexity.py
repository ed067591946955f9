"""Perplexities against loops over transformers' own models: a token masked at a time, or a text at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from llm_arch.backbones.convolutional import ConvolutionalEncoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data import MaskedTokenData, NextTokenData
from llm_arch.evaluation.pseudo_perplexity import PseudoPerplexity, Surprise
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.inference.directory import load, save
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = [*SPECIAL, *(f"w{i}" for i in range(40))]
SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
NONE = LabelSpace(())
TEXTS = ["w1 w2 w3", "w7", "w9 w9 w0 w4 w5 w6 w33 w21 w2 w17", "w3 nonsense w8", "w4 w5"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names)


def whole(config: dict[str, Any], kind: Any, directory: Path) -> nn.Module:
    """A language model of transformers whose predictions are far from uniform, written to a folder."""
    torch.manual_seed(5)
    model = kind.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    model.save_pretrained(directory)
    return model.eval()


@torch.no_grad()
def costs_of_transformers(model: nn.Module, rows: list[list[int]], mask: int | None, offset: int) -> list[float]:
    """One token after another, by a model of transformers: masked, or from those before it."""
    found = []
    for row in rows:
        cost = 0.0
        for place in range(offset, len(row) - (offset if mask is not None else 0)):
            changed = list(row)
            if mask is not None:
                changed[place] = mask
            logits: Tensor = model(torch.tensor([changed])).logits[0, place if mask is not None else place - 1]
            cost -= float(logits.log_softmax(0)[row[place]])
        found.append(cost)
    return found


def masked_task(directory: Path, **changes: Any) -> tuple[nn.Module, Task]:
    model = whole({**SHAPE, "model_type": "bert", "intermediate_size": 24, **changes}, AutoModelForMaskedLM, directory)
    return model, Task(Pretrained(str(directory)), MaskedLanguageModel, NONE)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_pseudo_perplexity_is_every_token_masked_once(tmp_path: Path, tokenizer: Any, batch_tokens: int) -> None:
    model, task = masked_task(tmp_path / "bert")
    found = PseudoPerplexity(task, tokenizer=tokenizer, batch_tokens=batch_tokens)(TEXTS)
    expected = costs_of_transformers(model, tokenizer(TEXTS)["input_ids"], mask=4, offset=1)
    assert [one.nll for one in found] == pytest.approx(expected, rel=1e-4)
    assert [one.tokens for one in found] == [3, 1, 10, 3, 2]
    assert [one.text_bytes for one in found] == [len(text) for text in TEXTS]
    assert [one.perplexity for one in found] == pytest.approx(
        [math.exp(cost / one.tokens) for cost, one in zip(expected, found, strict=True)], rel=1e-4
    )
    assert max(expected) > 2 * min(expected)


def test_perplexity_of_a_causal_model(tmp_path: Path, tokenizer: Any) -> None:
    model = whole({**SHAPE, "model_type": "gpt2"}, AutoModelForCausalLM, tmp_path / "gpt2")
    task = Task(Pretrained(str(tmp_path / "gpt2")), LanguageModel, NONE)
    rows = [[2, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in TEXTS]
    expected = costs_of_transformers(model, rows, mask=None, offset=1)
    found = PseudoPerplexity(task, tokenizer=tokenizer)(TEXTS)
    assert [one.nll for one in found] == pytest.approx(expected, rel=1e-4)
    assert [one.tokens for one in found] == [3, 1, 10, 3, 2]


def test_long_texts_are_cut_and_nothing_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    model, task = masked_task(tmp_path / "bert")
    text = TEXTS[2]  # ten tokens in pieces of four, four and two
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [[2, *ids[i : i + 4], 3] for i in (0, 4, 8)]
    (found,) = PseudoPerplexity(task, tokenizer=tokenizer, max_length=6)(text)
    assert found.tokens == 10
    assert found.nll == pytest.approx(sum(costs_of_transformers(model, pieces, mask=4, offset=1)), rel=1e-4)
    causal = whole({**SHAPE, "model_type": "gpt2"}, AutoModelForCausalLM, tmp_path / "gpt2")
    task = Task(Pretrained(str(tmp_path / "gpt2")), LanguageModel, NONE)
    pieces = [[2, *ids][i : i + 5] for i in (0, 4, 8)]  # each goes on with the last token of the one before
    (found,) = PseudoPerplexity(task, tokenizer=tokenizer, max_length=4)(text)
    assert found.tokens == 10
    assert found.nll == pytest.approx(sum(costs_of_transformers(causal, pieces, mask=None, offset=1)), rel=1e-4)


def test_many_texts_come_in_order_and_one_at_a_time(tmp_path: Path, tokenizer: Any) -> None:
    _, task = masked_task(tmp_path / "bert")
    scorer = PseudoPerplexity(task, tokenizer=tokenizer)
    alone = {text: scorer(text)[0] for text in TEXTS}
    read = 0

    def texts() -> Any:
        nonlocal read
        for i in range(600):
            read += 1
            yield TEXTS[i % 5]

    stream = scorer.stream(texts())
    first = next(stream)
    assert read < 600
    for i, one in enumerate([first, *stream]):
        assert one.nll == pytest.approx(alone[TEXTS[i % 5]].nll, rel=1e-4)
    assert read == 600


def test_texts_without_tokens(tmp_path: Path, tokenizer: Any) -> None:
    _, task = masked_task(tmp_path / "bert")
    scorer = PseudoPerplexity(task, tokenizer=tokenizer)
    assert scorer([]) == []
    found = scorer(["  ", "w1"])
    assert (found[0].tokens, found[0].nll) == (0, 0.0)
    assert math.isnan(found[0].perplexity)
    assert math.isnan(found[0].bits_per_byte)
    assert found[1].tokens == 1
    assert [one.tokens for one in scorer(["  "])] == [0]


def test_the_task_is_left_as_it_was(tmp_path: Path, tokenizer: Any) -> None:
    _, task = masked_task(tmp_path / "bert")
    task.train()
    scorer = PseudoPerplexity(task, tokenizer=tokenizer)
    assert scorer(TEXTS) == scorer(TEXTS)  # no dropout
    assert task.backbone.training
    assert all(module.training for module in task.backbone.modules())
    assert task.head.training


def test_sums() -> None:
    total = sum([Surprise(2, 3.0, 5), Surprise(4, 1.5, 7)], Surprise())
    assert total == Surprise(6, 4.5, 12)
    assert total.perplexity == pytest.approx(math.exp(0.75))
    assert total.bits_per_byte == pytest.approx(4.5 / math.log(2) / 12)
    assert Surprise(1, 800.0, 1).perplexity == math.inf


# From model directories


@pytest.mark.parametrize("kind", ["bert", "cnn", "pairs"])
def test_a_masked_model_directory(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    bert = {**SHAPE, "model_type": "bert", "intermediate_size": 24}
    backbone = ConvolutionalEncoder(hidden_size=8) if kind == "cnn" else Pretrained(config=bert)
    head, labels = (BertPretraining, LabelSpace(("next", "random"))) if kind == "pairs" else (MaskedLanguageModel, NONE)
    task = Task(backbone, head, labels, vocabulary=len(tokenizer))
    with torch.no_grad():
        task.backbone.embeddings.weight.normal_(0, 0.5)
    task.eval()
    data = MaskedTokenData(max_length=6)
    data.tokenizer = tokenizer
    save(task, data, tmp_path / "model")
    found = PseudoPerplexity(tmp_path / "model")(TEXTS)
    assert found == PseudoPerplexity(load(tmp_path / "model"))(TEXTS)
    ours = PseudoPerplexity(task, tokenizer=tokenizer, max_length=6)(TEXTS)
    assert [one.nll for one in found] == pytest.approx([one.nll for one in ours], rel=1e-5)


@pytest.mark.parametrize("start", ["bos", "none"])
def test_a_causal_model_directory_begins_texts_as_it_was_trained(tmp_path: Path, tokenizer: Any, start: Any) -> None:
    task = Task(RecurrentEncoder(hidden_size=8, bidirectional=False), LanguageModel, NONE, vocabulary=len(tokenizer))
    data = NextTokenData(document_start=start, max_length=6)
    data.tokenizer = tokenizer
    save(task.eval(), data, tmp_path / "model")
    found = PseudoPerplexity(tmp_path / "model")(TEXTS)
    assert [one.tokens for one in found] == ([3, 1, 10, 3, 2] if start == "bos" else [2, 0, 9, 2, 1])


# Mistakes


def test_what_is_no_language_model(tmp_path: Path, tokenizer: Any) -> None:
    _, task = masked_task(tmp_path / "bert")
    for options, message in (
        ({}, "a Task does not know its tokenizer; give tokenizer=data.tokenizer"),
        ({"tokenizer": tokenizer, "batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"tokenizer": tokenizer, "max_length": 2}, r"max_length must be in 3 … 24, got 2"),
        ({"tokenizer": tokenizer, "max_length": 25}, r"max_length must be in 3 … 24, got 25"),
    ):
        with pytest.raises(UserError, match=message):
            PseudoPerplexity(task, **options)
    other = Task(Pretrained("tiny:bert"), SequenceClassification, LabelSpace(("a", "b")))
    with pytest.raises(UserError, match="SequenceClassification is no head of a language model; take a model that was"):
        PseudoPerplexity(other, tokenizer=tokenizer)
    with pytest.raises(UserError, match="no model directory|no such directory"):
        PseudoPerplexity(tmp_path / "nothing")


def test_a_tokenizer_without_a_mask(tmp_path: Path) -> None:
    _, task = masked_task(tmp_path / "bert")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    with pytest.raises(
        UserError, match="the tokenizer has no mask token; take the one that the model was trained with"
    ):
        PseudoPerplexity(task, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
