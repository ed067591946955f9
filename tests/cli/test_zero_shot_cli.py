"""`llm-arch zero-shot` as a user sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.data import MultipleChoiceData, NextTokenData
from llm_arch.evaluation.zero_shot import Accuracy, ZeroShotChoice
from llm_arch.heads.language_model import LanguageModel
from llm_arch.inference.directory import save
from llm_arch.task import Task
from llm_arch.types import LabelSpace

ROWS = [
    {"question": "what is warm?", "choices": ["the sun", "ice", "a cold night"], "answer": 0},
    {"question": "who barks?", "choices": ["a dog", "a tree"], "answer": "a tree"},
    {
        "question": "is ice cold?",
        "choices": [{"label": "A", "text": "yes"}, {"label": "B", "text": "no"}],
        "answer": "A",
    },
]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> str:
    torch.manual_seed(0)
    task = Task("tiny:gpt2", LanguageModel, LabelSpace(()))
    with torch.no_grad():
        task.backbone.embeddings.weight.normal_(0, 0.5)
    return str(save(task, NextTokenData(tokenizer=tokenizer), tmp_path_factory.mktemp("causal") / "model"))


@pytest.fixture
def verb(here: Path, run: Callable[..., Any], causal: str) -> Callable[..., Any]:
    write("rows.jsonl", ROWS)
    return lambda *arguments, model=causal: run("zero-shot", "--model", model, *arguments)


def write(name: str, rows: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def values(printed: str, name: str) -> list[float]:
    found = re.search(rf"^ *{name} +([\d., …]+)$", printed, re.MULTILINE)
    assert found, printed
    return [float(number.replace(",", "")) for number in found[1].split("…")]


def test_table_and_lines_say_what_python_says(verb: Any, causal: str) -> None:
    done = verb("--input", "rows.jsonl", "--output", "found.jsonl")
    assert (done.code, done.err) == (0, "")
    expected = ZeroShotChoice(causal)(ROWS)
    accuracy = Accuracy.of(expected)
    assert values(done.out, "rows") == values(done.out, "rows with an answer") == [3]
    assert values(done.out, "accuracy") == pytest.approx([accuracy.accuracy], abs=1e-4)
    assert values(done.out, "95 % interval") == pytest.approx([accuracy.low, accuracy.high], abs=1e-4)
    assert values(done.out, "chance") == pytest.approx([(1 / 3 + 1 / 2 + 1 / 2) / 3], abs=1e-4)
    for line, row, one in zip(read("found.jsonl"), ROWS, expected, strict=True):
        assert list(line) == ["question", "choices", "answer", "label", "text", "score", "scores", "right"]
        assert {name: line[name] for name in row} == row
        assert line["label"] == one.prediction.label
        assert line["scores"] == pytest.approx(one.prediction.scores, rel=1e-4)
        assert line["right"] is one.right
    assert max(map(len, done.out.splitlines())) <= 100


def test_without_answers_there_is_no_accuracy(verb: Any) -> None:
    write("asked.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in ROWS])
    done = verb("--input", "asked.jsonl", "--output", "found.jsonl")
    assert (done.code, done.err) == (0, "")
    assert "accuracy" not in done.out
    assert [line["right"] for line in read("found.jsonl")] == [None] * 3


def test_options(verb: Any, causal: str) -> None:
    Path("rows.csv").write_text("q,about,a,b,key\nwho barks?,pets,a dog,a tree,b\n", encoding="utf-8")
    columns = ("--question-column", "q", "--choice-columns", "a", "b", "--answer-column", "key", "--context-column")
    more = ("--template", r"{context}:\n{question} So", "--normalise", "pmi", "--max-length", "64")
    done = verb("--input", "rows.csv", *columns, "about", *more, "--output", "found.jsonl")
    assert (done.code, done.err) == (0, "")
    data = MultipleChoiceData(
        question_column="q", choice_columns=["a", "b"], answer_column="key", context_column="about"
    )
    scorer = ZeroShotChoice(causal, data, template="{context}:\n{question} So", normalise="pmi")
    (one,) = scorer([{"q": "who barks?", "about": "pets", "a": "a dog", "b": "a tree", "key": "b"}])
    assert read("found.jsonl")[0]["scores"] == pytest.approx(one.prediction.scores, rel=1e-4)
    assert set(one.prediction.scores) == {"a", "b"}
    write("long.jsonl", [{"question": "warm " * 300, "choices": ["a", "b"]}])
    assert "note: 2 choices with their questions were longer than 128 tokens" in verb("--input", "long.jsonl").out


WRONG = {
    "nope.jsonl": (None, "nope.jsonl: no such file"),
    "empty.jsonl": ([], "empty.jsonl has no rows; add some, or name another file"),
    "columns.jsonl": ([{"q": "a", "choices": ["a", "b"]}], "columns.jsonl, line 1: has no 'question'; it has: q, ch"),
    "one.jsonl": ([ROWS[0], {"question": "a", "choices": ["a"]}], "one.jsonl, line 2: has 1 choice ('choices')"),
    "text.jsonl": ([{"question": "a", "choices": "a, b"}], "text.jsonl, line 1: 'choices' holds str instead of a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(verb: Any, name: str) -> None:
    content, expected = WRONG[name]
    if content is not None:
        write(name, content)
    sentence = verb("--input", name, "--output", "found.jsonl").sentence
    assert sentence.startswith(expected)
    assert "--data." not in sentence
    assert not Path("found.jsonl").exists()


def test_wrong_models_and_options(verb: Any, trained: Path) -> None:
    done = verb("--input", "rows.jsonl", model=str(trained / "model"))
    assert "holds a SequenceClassification on a Pretrained" in done.sentence
    assert "take a decoder" in done.sentence
    assert "lacks {question}" in verb("--input", "rows.jsonl", "--template", "why?").sentence
    assert "invalid choice: 'words'" in verb("--input", "rows.jsonl", "--normalise", "words").sentence
    assert verb().sentence.startswith("the following arguments are required: --input")
