"""`llm-arch benchmark`: saved models side by side."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.evaluation.benchmark import memory, timing
from llm_arch.evaluation.benchmark import run as benchmark_run
from llm_arch.types import UserError

FAST = ("--seconds", "0.01", "--lengths", "8", "12", "--batch-size", "2")


@pytest.fixture
def bench(here: Path, run: Any, trained: Path) -> Callable[..., Any]:
    return lambda *arguments: run("benchmark", "--model", str(trained / "model"), *FAST, *arguments)


@pytest.fixture
def _without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_arch.evaluation.benchmark.memory.peak_memory", lambda *arguments: 10**6)


@pytest.mark.usefixtures("_without_memory")
def test_two_models(bench: Any, trained: Path) -> None:
    shutil.copytree(trained / "model", "copy/model")
    done = bench("--against", "copy", "--data", "test.jsonl", "--output", "found/here")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 100
    for column in ("parameters", "memory MB", "MMAC/token", "p95", "rows/s", "times as fast", "accuracy"):
        assert column in done.out
    assert re.search(r"measured on .+, 1 thread, torch 2\.", done.out)
    found = json.loads(Path("found/here/benchmark.json").read_text(encoding="utf-8"))
    assert (found["threads"], found["clock"], found["batch_size"], found["data"]) == (1, "cpu", 2, "test.jsonl")
    assert {"cpu", "cores", "gpus"} <= found["hardware"].keys()
    assert {"torch", "transformers", "llm_arch"} <= found["versions"].keys()
    first, second = found["models"]
    assert (first["name"], second["name"]) == ("out", "copy")
    same = ("task", "parameters", "nonzero_parameters", "weights_bytes", "directory_bytes", "macs_per_token", "value")
    assert {k: first[k] for k in same} == {k: second[k] for k in same}
    assert first["times_as_fast"] == 1
    assert 0.2 < second["times_as_fast"] < 5
    after = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["after"]
    assert first["value"] == pytest.approx(after[first["metric"]], abs=1e-3)
    assert first["memory_bytes"] == 10**6
    assert [at["length"] for at in first["at_lengths"]] == [8, 12]
    assert first["on_rows"]["rows"] == 12
    assert Path("found/here/pareto.png").read_bytes().startswith(b"\x89PNG")


def test_memory_of_a_fresh_process(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python with torch alone takes more than 100 MB.
    assert 100e6 < memory.peak_memory(trained / "model", [[{"text": "on light"}]], 1) < 1e9
    monkeypatch.setattr(memory, "_PROGRAM", "raise SystemExit('no room')")
    with pytest.raises(UserError, match=r"model: the process that measures memory failed \(no room\)"):
        memory.peak_memory(trained / "model", [], 1)


@pytest.mark.usefixtures("_without_memory")
def test_without_rows_nothing_is_written(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two threads wait for each other where the other core has its own work: few calls.
    monkeypatch.setattr(timing, "_FEWEST_ROUNDS", 1)
    monkeypatch.setattr(benchmark_run, "_REPEATS", 1)
    before = sorted(path.name for path in Path().rglob("*"))
    done = bench("--lengths", "10", "9999", "--threads", "2")
    assert (done.code, done.err) == (0, "")
    assert "times as fast" not in done.out  # of one model
    assert re.search(r"^time of a row|: time of", done.out, flags=re.MULTILINE)
    assert "no rows of 9999 tokens" in done.out
    assert "--output DIR writes these numbers" in done.out
    assert sorted(path.name for path in Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--against", "nothing"), "nothing: no such directory; name the model directory"),
        (("--against", "."), ". is no model directory of llm-arch"),
        (("--data", "nope.csv"), "nope.csv: no such file"),
        (("--threads", "0"), "threads must be at least 1, got 0"),
        (("--batch-size", "0"), "batch_size must be at least 1, got 0"),
        (("--lengths", "0"), "lengths must be at least 1, got 0"),
        (("--seconds", "-1"), "seconds must be above 0, got -1"),
        (("--output", "train.jsonl"), "--output train.jsonl is a file; name a folder"),
        (("--thread", "1"), "unknown option --thread; did you mean --threads?"),
        (("--lengths", "9999"), "no rows of 9999 tokens could be made; name other lengths"),
    ],
)
def test_wrong_input(bench: Any, arguments: tuple[str, ...], sentence: str) -> None:
    before = sorted(path.name for path in Path().rglob("*"))
    assert bench(*arguments).sentence.startswith(sentence)
    assert sorted(path.name for path in Path().rglob("*")) == before


def test_models_of_different_tasks(bench: Any, run: Any, trained: Path) -> None:
    Path("train.conll").write_text(
        "".join(f"Ada\tB-person\nlives\tO\nat\tO\n{i}\tO\n\n" for i in range(12)), encoding="utf-8"
    )
    arguments = ("-c", "task/ner", "-c", "backbone/tiny", "--data.train", "train.conll", "--trainer.max_steps", "1")
    assert run("fit", *arguments, "--output", "entities").code == 0
    done = bench("--against", "entities", "--data", "test.jsonl")
    assert done.sentence.startswith(f"{trained / 'model'} is a model of SequenceClassification, entities/model one of ")
    assert done.sentence.endswith("compare models of one task, or leave the data out")


def test_a_damaged_model(bench: Any, trained: Path) -> None:
    shutil.copytree(trained / "model", "copy")
    Path("copy/head.safetensors").write_bytes(b"x")
    assert bench("--against", "copy", "--check").sentence.startswith("copy/head.safetensors is not the file that was")


def test_without_matplotlib(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    done = bench("--data", "test.jsonl", "--output", "found")
    assert done.sentence == "the plot needs matplotlib: pip install 'llm_arch[plots]'"
    assert not Path("found").exists()
