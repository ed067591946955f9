"""`llm-arch generate` as a user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.data.next_tokens import NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.inference import save
from llm_arch.task import Task
from llm_arch.types import LabelSpace


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> str:
    task = Task("tiny:gpt2", LanguageModel, LabelSpace(()))
    data = NextTokenData(tokenizer=tokenizer, max_length=64)
    return str(save(task, data, tmp_path_factory.mktemp("generate") / "model"))


def test_prompts_are_continued_on_the_terminal(run: Callable[..., Any], model: str) -> None:
    done = run("generate", "--model", model, "--prompt", "turn on", "open the", "--max-new-tokens", "4")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("turn on")
    assert len(lines[0]) > len("turn on")
    assert any(line.startswith("open the") for line in lines)


def test_a_file_gives_json_lines(run: Callable[..., Any], model: str, here: Path) -> None:
    (here / "prompts.jsonl").write_text('{"text": "turn on"}\n{"text": "open"}\n', encoding="utf-8")
    options = ("--input", "prompts.jsonl", "--max-new-tokens", "3", "--temperature", "1.5", "--output", "out.jsonl")
    assert run("generate", "--model", model, *options).code == 0
    first = (here / "out.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["prompt"] for line in first.splitlines()] == ["turn on", "open"]
    assert run("generate", "--model", model, *options).code == 0
    assert (here / "out.jsonl").read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "a", "--max-new-tokens", "0"), "--max-new-tokens must be at least 1, got 0"),
        (("--prompt", "a", "--temperature", "0"), "--temperature must be above 0, got 0.0"),
        (("--prompt", "a", "--top-p", "1.5"), "--top-p must be at most 1, got 1.5"),
        (("--prompt", "a", "--output", "no/such/file"), "the folder no/such does not exist"),
        (("--input", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_mistakes(run: Callable[..., Any], model: str, here: Path, options: tuple[str, ...], message: str) -> None:
    done = run("generate", "--model", model, *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_classifier_does_not_generate(run: Callable[..., Any], trained: Path) -> None:
    done = run("generate", "--model", str(trained / "model"), "--prompt", "a")
    assert done.code == 2
    assert "does not generate" in done.err
