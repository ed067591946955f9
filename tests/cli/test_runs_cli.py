"""`llm-arch runs`, on real runs and on what is left of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.cli import runs


@pytest.fixture
def several(here: Path, trained: Path, fit: Callable[..., Any]) -> Path:
    """A run, one that went on from it, one without results, and three that are damaged."""
    shutil.copytree(trained, here / "runs" / "first")
    done = fit("--model.backbone", "runs/first/model", "--data.tokenizer", "null", output="runs/deep/second")
    assert (done.code, done.err) == (0, "")
    for name in ("stopped", "torn", "broken"):
        (here / "runs" / name).mkdir()
        shutil.copy(trained / "config.yaml", here / "runs" / name)
    for name in ("stopped", "torn"):
        (here / "runs" / name / "checkpoints").mkdir()
        shutil.copy(trained / "checkpoints" / "last.ckpt", here / "runs" / name / "checkpoints")
    torn = here / "runs" / "torn" / "checkpoints" / "last.ckpt"
    torn.write_bytes(torn.read_bytes()[:1000])
    (here / "runs" / "broken" / "config.yaml").write_text("a: !!python/object/apply:os.mkdir [gone]\n")
    (here / "runs" / "first" / "wandb" / "files").mkdir(parents=True)
    (here / "runs" / "first" / "wandb" / "files" / "config.yaml").write_text("")  # of no run
    return here


def test_json(several: Path, run: Callable[..., Any]) -> None:
    done = run("runs", "--json")
    assert (done.code, done.err) == (0, "")
    found = {one["directory"]: one for one in json.loads(done.out)}
    assert sorted(found) == [f"runs/{name}" for name in ("broken", "deep/second", "first", "stopped", "torn")]
    first, second = found["runs/first"], found["runs/deep/second"]
    assert first["state"] == second["state"] == "finished"
    assert first["after"] == json.loads(Path("runs/first/metrics.json").read_text())["after"]
    assert (first["task"], first["backbone"], first["data"]) == ("SequenceClassification", "tiny:bert", "train.jsonl")
    assert first["metric"] == "accuracy"
    assert first["parents"] == []
    assert [parent["name"] for parent in second["parents"]] == ["runs/first/model"]
    assert found["runs/stopped"]["state"] == "unfinished, resumable at step 2"
    assert found["runs/torn"]["state"] == "failed: its checkpoints are damaged"
    assert found["runs/broken"]["state"] == "damaged"
    assert "config.yaml is not valid YAML" in found["runs/broken"]["fault"]
    assert not Path("gone").exists()


def test_table(several: Path, run: Callable[..., Any]) -> None:
    done = run("runs", "runs/first", "runs/deep", "--sort", "loss")
    assert done.code == 0
    lines = [line for line in done.out.splitlines() if line.startswith(" runs/") or line.startswith("runs/")]
    losses = [json.loads(Path(name, "metrics.json").read_text())["after"]["loss"] for name in _names(lines)]
    assert losses == sorted(losses)
    assert len(losses) == 2
    assert any("first" in line.split()[-1] for line in lines if "second" in line.split()[0])


def _names(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_wrong_input(here: Path, run: Callable[..., Any]) -> None:
    assert (
        run("runs").sentence
        == "runs: no such directory; name the folder that the runs lie in, such as llm-arch runs DIR"
    )
    Path("runs").mkdir()
    assert run("runs").sentence == "there are no runs below runs; name the folder that they lie in"
    assert json.loads(run("runs", "--json").out) == []
    (Path("runs") / "a").mkdir()
    (Path("runs") / "a" / "metrics.json").write_text('{"after": {"f1": 0.5}}')
    assert run("runs", "--sort", "x").sentence == "--sort x: no run has a metric of that name; they have: f1"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "[" * 100_000),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"after": 3, "train": []}'),
        ("config.yaml", "- a\n"),
        ("config.yaml", "\x00"),
        ("model/llm_arch.json", '{"lineage": {"parents": 3}}'),
        ("model/llm_arch.json", "{"),
    ],
)
def test_damage_is_listed(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / name).write_text(content)
    one = runs.read_run(tmp_path)
    assert one.directory == str(tmp_path)
    assert one.state


def test_names_are_text(tmp_path: Path, run: Callable[..., Any]) -> None:
    (tmp_path / "a").mkdir()
    config = {"data": {"init_args": {"train": "[/red]\x1b[31m[link=http://x]a"}}, "model": {"backbone": "[bold]"}}
    (tmp_path / "a" / "config.yaml").write_text(json.dumps(config))
    done = run("runs", str(tmp_path))
    assert done.code == 0
    assert "[/red]" in done.out
    assert "\x1b" not in done.out
