"""`llm-arch verify`: green on shipped configs, red with the right row, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm

CHECKS = 11
TINY = ("-c", "backbone/tiny", "--data.max_length", "128")
WRITING = ("--model.backbone", "tiny:llama", "--data.max_length", "128", "--data.max_completion", "16")
CORPUS = ("--data.train", "corpus.txt", "--data.documents", "block", "--model.backbone")
ENCODER = (*CORPUS, "tiny:bert", "--data.tokenizer", "trained:wordpiece:300")
DECODER = (*CORPUS, "tiny:llama", "--data.tokenizer", "trained:bpe:300")
CONFIGS = {
    "task/question_answering": TINY,
    "task/multiple_choice": TINY,
    "task/regression": TINY,
    "task/relation_extraction": TINY,
    "task/dialogue": WRITING,
    "pretrain/mlm": ENCODER,
    "pretrain/bert": ENCODER,
    "pretrain/clm": DECODER,
    "pretrain/code": DECODER,
}
HEAD = """
from llm_arch.heads.classification import SequenceClassification
from llm_arch.types import Loss


class Mean(SequenceClassification):
    def loss(self, hidden, batch):
        return Loss(super().loss(hidden, batch).mean, 1.0)
"""


def read(path: Path) -> dict[str, dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["failed"] == sum(one["status"] == "fail" for one in found["checks"])
    assert len(found["checks"]) == CHECKS
    return {one["check"]: one for one in found["checks"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_green(name: str, here: Path, run: Callable[..., Any]) -> None:
    documents = ("\n".join(f"The {what} {number} is here." for what in ("cat", "dog", "hen")) for number in range(400))
    (here / "corpus.txt").write_text("\n\n".join(documents), encoding="utf-8")
    done = run("verify", "-c", name, *CONFIGS[name], "--two-processes", "false", "--output", "verify.json")
    assert (done.code, done.err) == (0, ""), done.out
    found = read(here / "verify.json")
    assert {one["status"] for one in found.values()} <= {"pass", "warn", "skip"}
    without = 3 if name.startswith("pretrain/") else 2  # a corpus has no labels, and its documents are much alike
    assert sum(one["status"] == "pass" for one in found.values()) >= CHECKS - without
    for check, one in found.items():
        assert check in done.out
        assert (one["measured"] is None) == (one["status"] == "skip")
    assert done.out.rstrip().endswith("on the CPU in fp32")
    assert {path.name for path in here.iterdir()} == {
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
        "corpus.txt",
        "verify.json",
    }


def test_two_processes_and_a_broken_head(here: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes sum up what they are given, so that they agree on wrong sums too."""
    monkeypatch.setattr("llm_arch.evaluation.verification.processes.subprocess.Popen", warm.Popen)
    (here / "my_broken_heads.py").write_text(HEAD)
    mine = ("--data.train", "train.jsonl", "--data.validation", "validation.jsonl")
    broken = ("--model.head", "my_broken_heads.Mean", "--output", "verify.json")
    done = run("verify", "-c", "task/text_classification", *TINY, *mine, *broken)
    assert (done.code, done.err) == (1, ""), done.out
    found = read(here / "verify.json")
    assert [name for name, one in found.items() if one["status"] == "fail"] == [
        "loss and gradient: one batch = accumulated",
        "no duplicates between splits",  # both files begin with the same rows
    ]
    two = found["loss and gradient: 1 = 2 processes"]
    assert two["status"] == "pass", two
    assert two["measured"] < 1e-5


def test_config_of_a_run(trained: Path, here: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    own = ("--two-processes", "false", "--data.validation", "null", "--data.test", "null")
    done = run("verify", "-c", str(trained / "config.yaml"), *own)
    assert (done.code, done.err) == (0, ""), done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--resume", "auto"], "--resume is an option of llm-arch fit alone; leave it out"),
        (["--max-near-duplicates", "2"], "--max-near-duplicates must be in [0, 1], got 2"),
        (["--two-processes", "maybe"], "argument --two-processes: invalid choice"),
        (["--data.train", "gone.csv"], "gone.csv"),
        (["--data.max_length", "4096"], "data.max_length is 4096, but the backbone has 128 positions"),
        (["--output", "."], "--output . is a directory; name a file"),
        (["--data.trian", "a.csv"], "data.train"),
    ],
)
def test_wrong_input(arguments: list[str], sentence: str, here: Path, run: Callable[..., Any]) -> None:
    done = run("verify", "-c", "task/text_classification", "-c", "backbone/tiny", *arguments)
    assert sentence in done.sentence
    assert not list(here.glob("verify*"))


def test_without_data(run: Callable[..., Any]) -> None:
    assert "begin with a config that does" in run("verify", "-c", "backbone/tiny").sentence


def test_help(run: Callable[..., Any]) -> None:
    done = run("verify", "--help")
    assert done.code == 0
    assert "--two-processes" in done.out
    assert "-c task/ner" in done.out
