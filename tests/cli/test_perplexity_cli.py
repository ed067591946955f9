"""`llm-arch perplexity` as a user sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.data import MaskedTokenData, NextTokenData
from llm_arch.evaluation.pseudo_perplexity import PseudoPerplexity, Surprise
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.inference.directory import save
from llm_arch.task import Task
from llm_arch.types import LabelSpace

TEXTS = ["turn on the kitchen light", "warm", "open the door, please, and close the window"]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> str:
    torch.manual_seed(0)
    task = Task("tiny:bert", MaskedLanguageModel, LabelSpace(()))
    with torch.no_grad():
        task.backbone.embeddings.weight.normal_(0, 0.5)
    return str(save(task, MaskedTokenData(tokenizer=tokenizer), tmp_path_factory.mktemp("masked") / "model"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> str:
    task = Task("tiny:gpt2", LanguageModel, LabelSpace(()))
    return str(save(task, NextTokenData(tokenizer=tokenizer), tmp_path_factory.mktemp("causal") / "model"))


@pytest.fixture
def verb(here: Path, run: Callable[..., Any], masked: str) -> Callable[..., Any]:
    lines = [json.dumps({"text": text, "label": "x"}) for text in TEXTS]
    (here / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lambda *arguments, model=masked: run("perplexity", "--model", model, *arguments)


def value(printed: str, name: str) -> float:
    found = re.search(rf"^ *{name} +([\d.,]+) *$", printed, re.MULTILINE)
    assert found, printed
    return float(found[1].replace(",", ""))


def test_lines_and_table_say_what_python_says(verb: Any, masked: str) -> None:
    done = verb("--input", "texts.jsonl", "--output", "found.jsonl")
    assert (done.code, done.err) == (0, "")
    expected = PseudoPerplexity(masked)(TEXTS)
    lines = [json.loads(line) for line in Path("found.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    for line, one in zip(lines, expected, strict=True):
        assert list(line) == ["text", "tokens", "nll", "perplexity", "bits_per_byte"]
        assert line["tokens"] == one.tokens
        for name in ("nll", "perplexity", "bits_per_byte"):
            assert line[name] == pytest.approx(getattr(one, name), rel=1e-4)
    total = sum(expected, Surprise())
    assert value(done.out, "texts") == 3
    assert value(done.out, "tokens") == total.tokens
    assert value(done.out, "pseudo-perplexity") == pytest.approx(total.perplexity, rel=1e-3)
    assert value(done.out, "bits per byte") == pytest.approx(total.bits_per_byte, rel=1e-3)
    ranked = sorted(one.perplexity for one in expected)
    assert value(done.out, "lowest of a text") == pytest.approx(ranked[0], rel=1e-3)
    assert value(done.out, "median of a text") == pytest.approx(ranked[1], rel=1e-3)
    assert value(done.out, "highest of a text") == pytest.approx(ranked[2], rel=1e-3)
    assert "texts.jsonl under" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_nothing_is_written_unasked(verb: Any) -> None:
    before = sorted(path.name for path in Path().rglob("*"))
    assert verb("--input", "texts.jsonl").code == 0
    assert sorted(path.name for path in Path().rglob("*")) == before


def test_other_files_and_columns(verb: Any) -> None:
    Path("texts.txt").write_text("\n".join(TEXTS[:2]) + "\n\n" + TEXTS[2] + "\n", encoding="utf-8")
    Path("texts.csv").write_text("question\n" + "\n".join(f'"{text}"' for text in TEXTS) + "\n", encoding="utf-8")
    expected = value(verb("--input", "texts.jsonl").out, "pseudo-perplexity")
    assert value(verb("--input", "texts.txt").out, "pseudo-perplexity") == expected
    done = verb("--input", "texts.csv", "--text-column", "question")
    assert value(done.out, "pseudo-perplexity") == expected
    assert value(verb("--input", "texts.txt", "--max-length", "5").out, "pseudo-perplexity") != expected


def test_a_causal_model(verb: Any, causal: str) -> None:
    Path("one.txt").write_text("warm\n", encoding="utf-8")
    done = verb("--input", "one.txt", "--output", "found.jsonl", model=causal)
    assert (done.code, done.err) == (0, "")
    assert value(done.out, "perplexity") > 1
    assert "pseudo" not in done.out
    assert "median" not in done.out
    assert json.loads(Path("found.jsonl").read_text(encoding="utf-8"))["tokens"] == 1


WRONG = {
    "nope.csv": (None, "nope.csv: no such file"),
    "empty.jsonl": (b"", "empty.jsonl has no rows; add some, or name another file"),
    "column.csv": (b"question,label\na,b\n", "column.csv, line 2 has no 'text'; it has: question, label. Name the"),
    "blank.csv": (b"text,label\na,b\n ,b\n", "blank.csv, line 3: 'text' is empty; fix the row"),
    "latin.txt": ("warm\ncafé\n".encode("latin-1"), "latin.txt, line 2: is not valid UTF-8; save the file as UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(verb: Any, name: str) -> None:
    content, expected = WRONG[name]
    if content is not None:
        Path(name).write_bytes(content)
    assert verb("--input", name, "--output", "found.jsonl").sentence.startswith(expected)
    assert not Path("found.jsonl").exists()


def test_wrong_models_and_options(verb: Any, trained: Path) -> None:
    done = verb("--input", "texts.jsonl", model=str(trained / "model"))
    assert done.sentence.startswith("SequenceClassification is no head of a language model")
    assert "max_length must be in 3 … 128" in verb("--input", "texts.jsonl", "--max-length", "2").sentence
    assert verb().sentence.startswith("the following arguments are required: --input")
    assert verb("--input", "texts.jsonl", "--output", ".").sentence == "--output . is a directory; name a file"
    assert (
        "no/found.jsonl: the folder no does not exist"
        in verb("--input", "texts.jsonl", "--output", "no/found.jsonl").sentence
    )
