"""Every shipped config runs as it is, on embedded data and offline; overlays run on a task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from llm_arch.cli import configs
from llm_arch.cli.main import main
from llm_arch.data.sources import with_splits
from llm_arch.inference import load
from llm_arch.types import UserError

ROOT = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.yaml"))
TASKS = [name for name in NAMES if name.startswith("task/")]
# These write texts, and measuring takes a step a token.
WRITING = {f"task/{name}" for name in ("code_generation", "controllable_generation", "dialogue", "summarization")}
WRITING |= {"task/translation"}
# Of these the rows are made of Python's library.
OF_LIBRARY = {"task/code_generation", "task/summarization"}
# Need what a test machine lacks, or are run elsewhere: two processes in test_ddp, wandb in cli/test_fit_cli, SLURM in
# test_hardware, what needs a trained model in cli/test_compress_cli and cli/test_distil_cli.
ELSEWHERE = {
    *(f"hardware/{name}" for name in ("ddp", "deepspeed", "fsdp", "gpu", "slurm")),
    "recipe/compile",  # test_cuda
    "logger/wandb",
    "compress/distillation",
    "compress/self_distillation",
    "compress/joint",  # cli/test_fit_first
}
PRETRAINING = [name for name in NAMES if name.startswith("pretrain/")]
# They look at hundreds of rows, each several times.
LOOKING_AT_ROWS = {"compress/retraining_free", "compress/structured"}
OVERLAYS = [name for name in NAMES if name not in {*TASKS, *PRETRAINING, *ELSEWHERE}]
FEW = [
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"),
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    *("--data.batch_size", "4", "--data.evaluation_tokens", "128"),
]


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Fits a few steps from anywhere, then predicts with what was saved."""
    monkeypatch.chdir(tmp_path)

    def check(*names: str, options: Sequence[str] = ()) -> None:
        stacked = [part for name in names for part in ("-c", name)]
        assert main(["fit", *stacked, *FEW, *_shallow(names), *options, "--output", "out"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        metrics = json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))
        assert metrics["split"] == "test"
        assert set(metrics["before"]) == set(metrics["after"])
        source, needed = _predictable()
        assert main(["predict", "--model", "out/model", *source]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert needed.items() <= json.loads(line).items()

    return check


def _shallow(names: Sequence[str]) -> list[str]:
    """Two layers of a model that is loaded: more of the same takes time. To be 3x as fast it needs them all."""
    if "compress/structured" in names:
        return []
    models = [yaml.safe_load((ROOT / f"{name}.yaml").read_text(encoding="utf-8")).get("model", {}) for name in names]
    named = [str(model["backbone"]) for model in models if "backbone" in model]
    return ["--model.keep_layers", "2"] if named[-1].startswith("package:") else []


def _predictable() -> tuple[list[str], dict[str, object]]:
    """How to ask the trained model for one prediction, and the columns that its line repeats."""
    data = load("out/model").data
    columns = [name for name, always in data.columns.items() if always]
    if len(columns) == 1:
        return ["--text", "turn on the kitchen light"], {columns[0]: "turn on the kitchen light"}
    config = yaml.safe_load(Path("out/config.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    row = next(iter(data.source(with_splits(config["train"], None, None)["test"]).rows())).values
    needed = {name: row[name] for name in columns}
    Path("row.jsonl").write_text(json.dumps(needed) + "\n", encoding="utf-8")
    return ["--input", "row.jsonl"], needed


@pytest.mark.parametrize("name", TASKS)
def test_task_on_its_embedded_rows(works: Callable[..., None], name: str, request: pytest.FixtureRequest) -> None:
    if name in OF_LIBRARY:
        request.getfixturevalue("small_library")
    request.addfinalizer(partial(torch.use_deterministic_algorithms, False))
    briefly = ["--model.head.max_new_tokens", "8"] if name in WRITING else []
    works(name, options=["--trainer.deterministic", "true", *briefly])  # no task needs an operator that is none


@pytest.mark.usefixtures("small_library")
@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_on_the_embedded_corpus(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The same part of the corpus, whose tokenizers and stores the configs then share.
    smaller = ["--data.train", "stdlib:docs", "--data.max_tokens", "512", "--data.max_length", "64"]
    smaller += ["--data.validation_fraction", "0.1"]
    assert main(["fit", "-c", name, *FEW[:-4], *smaller, "--output", "out"]) == 0
    metrics = json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["split"] == "validation"
    assert metrics["after"]["perplexity"] > 1
    capsys.readouterr()
    row = {"text": "Return the [MASK] of a number.", "text_pair": "It is never below zero."}
    Path("row.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert main(["predict", "--model", "out/model", "--input", "row.jsonl"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["text"] == row["text"]
    lines = [json.dumps({"text": f"{label} {i}", "label": label}) for i in range(8) for label in ("off", "on")]
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    more = ["--data.train", "rows.jsonl", "--trainer.max_steps", "2", "--output", "tuned"]
    assert main(["fit", "-c", "task/text_classification", *FEW, *more, "--model.backbone", "out/model"]) == 0


@pytest.mark.usefixtures("rough_times")
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_on_a_task(works: Callable[..., None], name: str) -> None:
    few = ["--trainer.callbacks.rows", "16"] if name in LOOKING_AT_ROWS else []
    # Single weights go from a large model as from a small one, in more time.
    small = ["backbone/tiny"] if name.startswith("compress/") and not few else []
    works("task/text_classification", *small, name, options=few)


def test_overlays_stack_on_a_tiny_backbone(works: Callable[..., None]) -> None:
    works("task/text_classification", "recipe/linear_probe", "backbone/tiny")


def test_every_config_says_what_it_is_for() -> None:
    for name in NAMES:
        text = (ROOT / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# "), name
        assert yaml.safe_load(text), name
        assert max(map(len, text.splitlines())) <= 120, name


def test_all_are_covered() -> None:
    assert set(NAMES) == set(TASKS) | set(PRETRAINING) | set(OVERLAYS) | ELSEWHERE
    assert configs.names() == NAMES


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = ROOT / "task" / "text_classification.yaml"
    for name in ("task/text_classification", "task/text_classification.yaml", "configs/task/text_classification.yaml"):
        assert configs.find(name).samefile(expected)
    with pytest.raises(UserError, match=r"^task/text: no such config file; did you mean task/text_classification\?$"):
        configs.find("task/text")
    with pytest.raises(UserError, match=r"^q: no such config file; shipped are: .*task/translation$"):
        configs.find("q")


def test_read_knows_the_line_of_every_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# mine\n"
        "data:\n"
        "  init_args:\n"
        "    train: a.csv\n"
        "trainer:\n"
        "  callbacks+:\n"
        "  - class_path: X\n"
        "    init_args: {patience: 3}\n"
    )
    assert configs.read(path) == {
        key: f"{path}, line {line}"
        for key, line in {
            "data": 2,
            "data.train": 4,
            "trainer": 5,
            "trainer.callbacks": 6,
            "trainer.callbacks.class_path": 7,
            "trainer.callbacks.patience": 8,
        }.items()
    }


def test_read_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert configs.read(path) == {}


def test_places_leave_out_what_the_command_line_says(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("model:\n  freeze: none\n  dropout: 0.1\n")
    two.write_text("model:\n\n  dropout: 0.2\n")
    found = configs.places([one, two], ["--model.freeze", "backbone", "--data.init_args.train=a"])
    assert found == {"model": f"{two}, line 1", "model.dropout": f"{two}, line 3"}
