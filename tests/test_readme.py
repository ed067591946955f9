"""README's commands and snippets are true: each that can run offline is run, on few batches with a tiny backbone."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_arch.cli.main import VERBS, main
from llm_arch.inference.export import onnx

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = [
    *("-c", "backbone/tiny", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"),
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    *("--trainer.enable_progress_bar", "false"),
]
SMALL = ["--data.batch_size", "4", "--data.evaluation_tokens", "128"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)\b", "\n".join(blocks("bash")) + README))
    assert {"demo", "test", "install"} <= named
    assert all(re.search(rf"^{target} *:", makefile, flags=re.MULTILINE) for target in named)


def test_named_files_exist() -> None:
    named = re.findall(r"`((?:tests|benchmarks|configs|notebooks)/[\w./-]+\.\w+)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.usefixtures("rough_times")
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    # Takes a process for each model; cli/test_benchmark_cli.py has it.
    monkeypatch.setattr("llm_arch.evaluation.benchmark.memory.peak_memory", lambda *arguments: 10**6)
    # The model that is exported twice is traced once.
    kept, write = tmp_path / "kept.onnx", onnx.write_fp32
    monkeypatch.setattr(
        onnx,
        "write_fp32",
        lambda graph, file, **_: shutil.copy(kept, file) if kept.exists() else (write(graph, kept), write(graph, file)),
    )
    for name in ("reviews.csv", "more_reviews.csv"):
        lines = [f'"it was {word}, number {i}",{stars}' for i in range(10) for word, stars in (("good", 5), ("bad", 1))]
        Path(name).write_text("\n".join(["review,stars", *lines]) + "\n", encoding="utf-8")
    sentences = ["Ada\tB-person\nlives\tO\nhere\tO\n", "He\tO\nsaw\tO\nLondon\tB-place\n"]
    for name in ("train.conll", "test.conll"):
        Path(name).write_text("\n".join(sentences * 6), encoding="utf-8")
    ours = [line for line in commands() if line.startswith("llm-arch ")]
    assert {shlex.split(line)[1] for line in ours} == set(VERBS)
    Path("texts").mkdir()
    for number in range(3):
        lines = [f"once upon a time there were {i * number} lamps in a house of {i} rooms" for i in range(40)]
        Path(f"texts/{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    for line in ours:
        arguments = shlex.split(line)[1:]
        # No tiny BERT instead.
        from_scratch = any(part in line for part in ("pretrain/", "runs/language", "translation", "controllable"))
        few = [] if arguments[0] != "fit" else FEW[2:] if from_scratch else FEW
        if "translation" in line or "controllable" in line:  # many texts are measured, and then written
            few = [*few, *SMALL] if arguments[0] == "fit" else few
        if arguments[0] == "verify":
            few = [*FEW[:2], "--two-processes", "false"]
        if arguments[0] == "compress":
            few = FEW[2:]
            if "compress/joint" in line:  # of a tiny model nearly all time is spent outside of what can go
                few = [*few, "--trainer.callbacks.target", "2x macs"]
            if "keep_layers" in line:  # a tiny model has two
                few = [*few, "--model.keep_layers", "1"]
            if "compress/learned" in line:  # needs some steps to learn in
                few = [*few, "--trainer.max_epochs", "3"]
        if arguments[0] == "export":  # of a model that has learnt nothing, labels change at a breath
            few = ["--agreement", "0"]
            if "fastest" in line:  # cli/test_export_cli.py has both runtimes
                few = [*few, "--seconds", "0.1", "--runtimes", "onnx"]
        if arguments[0] == "benchmark":
            few = ["--seconds", "0.1", "--lengths", "8", "16"]
        assert main([*arguments, *few]) == 0, line
    printed = capsys.readouterr().out
    assert '"label"' in printed
    assert '"entities"' in printed


def test_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str) -> None:
    import llm_arch.task
    import llm_arch.trainer

    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python")
    assert len([line for line in snippet.splitlines() if line and "import" not in line]) <= 10

    def few(**options: Any) -> llm_arch.trainer.Trainer:
        limits = {f"limit_{stage}_batches": 1 for stage in ("train", "val", "test")}
        return llm_arch.trainer.Trainer(**{**options, "max_epochs": 1}, **limits, enable_progress_bar=False)

    scope: dict[str, Any] = {"few": few}
    exec(compile(snippet.replace("Trainer(", "few("), "README.md", "exec"), scope)  # noqa: S102
    assert (tmp_path / "runs" / "python" / "model" / "llm_arch.json").is_file()
