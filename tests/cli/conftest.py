"""The command line in this process: what it printed and its exit code; files and a trained model to use it on."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from llm_arch.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr that says what was wrong."""
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.out
        assert self.err.startswith("llm-arch: error: ")
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err.removeprefix("llm-arch: error: ").rstrip("\n")


def run(*arguments: str) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return Done(code, out.getvalue(), err.getvalue())


def tiny_rows(count: int, labels: Sequence[str] = ("off", "on")) -> list[dict[str, str]]:
    words = ("light", "lamp", "kitchen", "warm", "cold", "open", "music")
    names = [labels[i % len(labels)] for i in range(count)]
    return [{"text": f"{name} {words[i % 7]} {i}", "label": name} for i, name in enumerate(names)]


def write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


BASE = ("-c", "task/text_classification", "-c", "backbone/tiny")


def fit(*arguments: str, train: str = "train.jsonl", output: str = "out") -> Done:
    """A fit of two steps on the small files."""
    data = ("--data.train", train, "--data.validation", "validation.jsonl")
    return run("fit", *BASE, *data, "--trainer.max_steps", "2", "--output", output, *arguments)


@pytest.fixture(name="run")
def _run() -> Callable[..., Done]:
    return run


@pytest.fixture(name="fit")
def _fit(here: Path) -> Callable[..., Done]:
    return fit


@pytest.fixture(autouse=True)
def _as_before(rough_times: None) -> Iterator[None]:
    """A run quiets loggers and lets modules lie in the working directory."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels, path = {name: logging.getLogger(name).level for name in names}, list(sys.path)
    yield
    sys.path[:] = path
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with small files."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", tiny_rows(60))
    write_jsonl(tmp_path / "validation.jsonl", tiny_rows(20))
    write_jsonl(tmp_path / "test.jsonl", tiny_rows(12))
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of one run; not to be changed."""
    home = tmp_path_factory.mktemp("trained")
    for name, count in (("train", 60), ("validation", 20), ("test", 12)):
        write_jsonl(home / f"{name}.jsonl", tiny_rows(count))
    with contextlib.chdir(home):
        done = fit("--data.test", "test.jsonl", "--model.learning_rate", "0.01")
    assert done.code == 0, done.err
    assert done.err == ""
    (home / "out" / "printed.txt").write_text(done.out, encoding="utf-8")
    return home / "out"
