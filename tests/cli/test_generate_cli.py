"""`llm-arch generate` as a user sees it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.data.completion import CompletionData
from llm_arch.data.dialogue import DialogueData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.text_generation import TextGeneration
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


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> str:
    """Writes by control codes."""
    data = CompletionData(
        tokenizer=tokenizer, max_length=64, prompt_column=None, control_columns=["tone"], completion_column="text"
    )
    task = Task("tiny:gpt2", TextGeneration, LabelSpace(()))
    return str(save(task, data, tmp_path_factory.mktemp("writer") / "model"))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> str:
    """Answers."""
    data = DialogueData(tokenizer=tokenizer, max_length=64)
    task = Task("tiny:gpt2", TextGeneration, LabelSpace(()))
    return str(save(task, data, tmp_path_factory.mktemp("talker") / "model"))


def test_control_codes_alone_are_enough(run: Callable[..., Any], writer: str) -> None:
    few = ("--max-new-tokens", "4")
    kind, rude = (run("generate", "--model", writer, "--control", f"tone={tone}", *few) for tone in ("kind", "rude"))
    assert kind.code == rude.code == 0, kind.err
    assert kind.out.strip()
    assert "tone" not in kind.out  # an answer stands by itself


def test_constraints_hold(run: Callable[..., Any], model: str) -> None:
    done = run("generate", "--model", model, "--prompt", "open", "--max-new-tokens", "8", "--include", "kitchen")
    assert done.code == 0, done.err
    assert "kitchen" in done.out


def test_a_talk_goes_on_until_its_end(run: Callable[..., Any], talker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nhow warm is it\n"))
    done = run("generate", "--model", talker, "--chat", "--max-new-tokens", "3")
    assert done.code == 0, done.err
    assert done.out.count("assistant: ") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is nothing to go on with"),
        (("--control", "tone"), "--control takes NAME=VALUE"),
        (("--control", "mood=bad"), "no control code of that name; it knows: tone"),
        (("--prompt", "a", "--control", "tone=kind"), "by its control codes alone"),
        (("--control", "tone=kind", "--schema", "missing.json"), "--schema missing.json can't be read as JSON"),
        (("--chat", "--beams", "2"), "--chat talks on the terminal"),
        (("--chat",), "was trained on no dialogues"),
        (("--control", "tone=kind", "--include", "a b", "--ban", "b"), "'b'"),
    ],
)
def test_mistakes_with_codes_and_constraints(
    run: Callable[..., Any], writer: str, here: Path, options: tuple[str, ...], message: str
) -> None:
    done = run("generate", "--model", writer, *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
