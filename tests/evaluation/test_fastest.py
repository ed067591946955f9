"""The fastest way to run a model: what is tried, what is kept, what is written; times are made up but in one test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch import model_directory
from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.classification import TextClassificationData
from llm_arch.evaluation.fastest import Fastest, Way, fastest, search
from llm_arch.evaluation.fastest.shown import cells
from llm_arch.evaluation.fastest.ways import judged
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference import Predictor, load, save
from llm_arch.inference.export import onnx as onnx_runtime
from llm_arch.inference.export.exporting import export
from llm_arch.task import Task
from llm_arch.types import Backbone, LabelSpace, UserError

LABELS = LabelSpace(("a", "b", "c"))
WORDS = ["light", "lamp", "kitchen", "warm", "cold", "open", "close", "door", "window", "music", "play", "stop"]
TEXTS = [" ".join(WORDS[(i * 5 + j * (i + 1)) % len(WORDS)] for j in range(1 + i % 9)) for i in range(20)]
WAYS = [
    "as it is, fp32",
    "as it is, bf16",
    *(f"onnx, {precision}" for precision in ("fp32", "int8", "int8-static")),
    *(f"openvino, {precision}" for precision in ("fp32", "half", "int8")),
]


def saved(backbone: Backbone, folder: Path, tokenizer: str) -> Path:
    data = TextClassificationData(tokenizer=tokenizer, labels=list(LABELS.names), max_length=24)
    task = Task(backbone, SequenceClassification, LABELS)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.normal_(0, 0.3)
    return save(task.eval(), data, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    backbone = TextCNN(vocabulary_size=30522, embedding_size=16, filters=64, widths=(3,))
    return saved(backbone, tmp_path_factory.mktemp("fastest") / "model", tokenizer)


@pytest.fixture(scope="module")
def rows(model: Path) -> Path:
    """Texts with the labels that the model gives them, but the last."""
    labels = [prediction.to_dict()["label"] for prediction in Predictor(model)(TEXTS)]
    labels[-1] = LABELS.names[(LABELS.names.index(labels[-1]) + 1) % 3]
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, labels, strict=True)]
    path = model.with_name("rows.jsonl")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def dense(model: Path) -> Path:
    """The graph in fp32, traced once."""
    export(load(model), model.with_name("onnx"), "onnx", [{"text": "cold"}])
    return model.with_name("onnx") / "model.onnx"


@pytest.fixture
def again(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of the same model need not be traced anew."""
    monkeypatch.setattr(onnx_runtime, "write_fp32", lambda graph, file, **_: shutil.copy(dense, file))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let ways take so many milliseconds, in the order of WAYS, or 9."""

    def set_(**given: float) -> None:
        def made_up(predictors: Sequence[Predictor], *_: Any, **__: Any) -> list[float]:
            by_place = [given.get(name.translate(str.maketrans(", -", "___")), 9.0) for name in WAYS]
            return by_place[: len(predictors)]

        monkeypatch.setattr(search, "milliseconds_a_row", made_up)
        monkeypatch.setattr(search, "cpu_has_bf16", lambda: True)

    set_()
    return set_


# The choice


def way(name: str, ms: float, *, agreement: float = 1.0, value: float | None = None) -> Way:
    return Way(name, 1, ms, agreement, value)


def verdicts(ways: list[Way], *limits: Any) -> list[str]:
    return [one.verdict for one in judged(ways, *limits)[1]]


def test_without_labels_rows_must_be_predicted_as_before() -> None:
    ways = [way("x", 5), way("y", 1, agreement=0.97), way("z", 2, agreement=0.98), way("w", 3)]
    assert verdicts(ways, None, None, None, None) == ["slower", "only 97.0% as before", "kept", "slower"]
    assert verdicts(ways, None, None, 0.9, None) == ["slower", "kept", "slower", "slower"]
    assert verdicts(ways, None, None, 1.0, None)[3] == "kept"
    assert judged(ways, None, None, 0.9, None)[0] == "at least 90.0% of rows predicted as before"


def test_with_labels_the_metric_may_lose_points() -> None:
    ways = [way("x", 5, value=0.9), way("y", 1, value=0.879, agreement=0.5), way("z", 2, value=0.89, agreement=0.5)]
    limit, found = judged(ways, "f1", "max", None, None)
    assert limit == "f1 may lose at most 1 points"
    assert [one.verdict for one in found] == ["slower", "f1 would lose 2.1 points", "kept"]
    assert verdicts(ways, "f1", "max", None, 3.0)[1] == "kept"
    assert verdicts(ways, "f1", "max", None, 0.0)[0] == "kept"
    assert verdicts(ways, "f1", "max", 0.9, None) == ["kept", "only 50.0% as before", "only 50.0% as before"]
    better = [way("x", 5, value=0.9), way("y", 6, value=1.0)]
    assert verdicts(better, "f1", "max", None, None) == ["kept", "slower"]
    assert verdicts([way("x", 5, value=0.9), way("y", 1, value=float("nan"))], "f1", "max", None, 1.0)[0] == "kept"
    undefined = [way("x", 5, value=float("nan")), way("y", 1, value=float("nan"))]
    assert verdicts(undefined, "f1", "max", None, None) == ["kept", "f1 would lose nan points"]


def test_where_less_is_better_it_may_gain_percent() -> None:
    ways = [way("x", 5, value=50.0), way("y", 1, value=51.0), way("z", 2, value=50.4)]
    limit, found = judged(ways, "error", "min", None, 1.0)
    assert limit == "error may gain at most 1 %"
    assert [one.verdict for one in found] == ["slower", "error would gain 2.0 %", "kept"]


# What is written


@pytest.mark.usefixtures("again")
def test_the_fastest_is_a_model_directory_of_its_own(
    model: Path, rows: Path, tmp_path: Path, times: Callable[..., None]
) -> None:
    times(openvino__fp32=4.0, onnx__fp32=3.0, as_it_is__fp32=6.0)
    told: list[tuple[str, float]] = []
    output = tmp_path / "out"
    found = fastest(model, str(rows), output, points=0.0, advance=lambda *one: told.append(one))
    assert [one.name for one in found.ways if one.ms is not None] == WAYS
    refused = {one.name: one.verdict for one in found.ways if one.ms is None}
    assert refused.keys() == {"onnx, half", "openvino, int8-static"}
    assert refused["onnx, half"].startswith("ONNX Runtime computes in fp32 or int8")
    assert (found.kept.name, found.times(found.kept)) == ("onnx, fp32", 2.0)
    assert (found.metric, found.ways[0].value, found.kept.agreement) == ("accuracy", pytest.approx(0.95), 1.0)
    assert {what for what, _ in told} >= {*WAYS[1:], "onnx, int8: accuracy"}
    assert list(tmp_path.iterdir()) == [output]

    model_directory.check_manifest(output)
    record = model_directory.read(output)
    assert record["backbone"]["runtime"] == "onnx"
    assert [one["name"] for one in record["records"]["fastest"]["ways"]] == [one.name for one in found.ways]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"llm-arch predict --model {output}" in card
    assert "| onnx, fp32 |" in card
    assert card.count("| kept |") == 1
    ours, theirs = Predictor(output)(TEXTS), Predictor(model)(TEXTS)
    assert [one.to_dict()["label"] for one in ours] == [one.to_dict()["label"] for one in theirs]


@pytest.mark.usefixtures("again")
def test_nothing_is_faster(model: Path, rows: Path, tmp_path: Path, times: Callable[..., None]) -> None:
    times(as_it_is__fp32=1.0)
    found = fastest(model, str(rows), tmp_path / "out", runtimes=["openvino"])
    assert found.kept.name == "as it is, fp32"
    assert not any(one.name.startswith("onnx") for one in found.ways)
    assert (tmp_path / "out/head.safetensors").read_bytes() == (model / "head.safetensors").read_bytes()
    assert "## The fastest way" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert export(load(tmp_path / "out"), tmp_path / "onnx", "onnx", [{"text": "cold"}]).agreement == 1
    assert "fastest" not in model_directory.read(tmp_path / "onnx")["records"]


def test_bf16_is_a_mark_in_the_record(tmp_path: Path, tokenizer: str, times: Callable[..., None]) -> None:
    times(as_it_is__bf16=1.0)
    model = saved(Pretrained("tiny:bert"), tmp_path / "model", tokenizer)
    unlabelled = tmp_path / "rows.jsonl"
    unlabelled.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    found = fastest(model, str(unlabelled), tmp_path / "out", runtimes=[], agreement=0.0)
    assert found.metric is None
    assert len(cells(found)[0]) == len(cells(found)[1]) == 6
    half = load(tmp_path / "out")
    assert {p.dtype for p in half.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.head.parameters()} == {torch.float32}
    predictions = zip(Predictor(half)(TEXTS), Predictor(model)(TEXTS), strict=True)
    apart = [abs(a.scores[k] - b.scores[k]) for a, b in predictions for k in LABELS.names]  # type: ignore[attr-defined]
    assert 0 < max(apart) < 0.1
    assert (tmp_path / "out/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is exported already; name the model that it was exported from"):
        export(half, tmp_path / "onnx", "onnx", [{"text": "cold"}])
    columns: dict[str, Any] = {"input_ids": [[5, 6]], "token_type_ids": [None], "index": [0], "epoch": 0}
    batch = half.data.collate(columns, labelled=False)
    with pytest.raises(UserError, match="served in bfloat16, whose steps are too coarse to train with"):
        half.task().train()(batch)


# What can't be had


@pytest.mark.usefixtures("again")
def test_what_can_not_be_had_is_listed(
    model: Path, rows: Path, tmp_path: Path, times: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxruntime.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(search, "cpu_has_bf16", lambda: False)
    found = fastest(model, str(rows), tmp_path / "out")
    lost = {one.name: one.verdict for one in found.ways if one.ms is None}
    assert lost["as it is, bf16"] == "this CPU does not compute in bf16"
    for precision in ("fp32", "int8", "int8-static"):
        assert "install it with: pip install 'llm_arch[export]'" in lost[f"onnx, {precision}"]
    assert [one.name for one in found.ways if one.ms is not None] == [WAYS[0], *WAYS[5:]]


@pytest.mark.usefixtures("again")
def test_a_runtime_that_fails_is_listed(
    model: Path, rows: Path, tmp_path: Path, times: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such kernel\nin a trace")

    monkeypatch.setattr("llm_arch.inference.export.openvino.OpenVino.write", fail)
    found = fastest(model, str(rows), tmp_path / "out", runtimes=["openvino"])
    assert {one.verdict for one in found.ways if "fp32" in one.name} == {"kept", "no such kernel"}


def test_a_model_that_no_graph_holds_stays_as_it_is(
    model: Path, rows: Path, tmp_path: Path, times: Callable[..., None]
) -> None:
    recurrent = RecurrentEncoder(vocabulary_size=30522, embedding_size=8, hidden_size=8)
    folder = saved(recurrent, tmp_path / "lstm", str(model))
    found = fastest(folder, str(rows), tmp_path / "out", runtimes=["onnx"], points=100.0)
    lost = [one.verdict for one in found.ways if one.name in ("onnx, fp32", "onnx, int8", "onnx, int8-static")]
    assert len(lost) == 3
    assert all(verdict.startswith("RecurrentEncoder goes from token to token") for verdict in lost)
    assert found.kept.name.startswith("as it is")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agreement": 1.5}, r"agreement must be in \[0, 1\], got 1.5"),
        ({"points": -1.0}, "points must be at least 0, got -1"),
        ({"agreement": 0.9, "points": 1.0}, "agreement and points are two limits"),
        ({"runtimes": ["tvm"]}, "runtimes must be of onnx and openvino, got 'tvm'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"directory": "model"}, "is the model itself; name another folder"),
        ({"data": "empty.jsonl"}, r"empty.jsonl"),
        ({"data": "faulty.jsonl"}, r"faulty.jsonl, row 2 has no 'text'"),
        ({"data": "texts.jsonl", "points": 1.0}, "texts.jsonl has no labels, and --points is of a metric"),
    ],
)
def test_bad_arguments(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("", encoding="utf-8")
    Path("faulty.jsonl").write_text('{"text": "a", "label": "a"}\n{"other": "a"}\n', encoding="utf-8")
    Path("texts.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    given: dict[str, Any] = {"data": str(rows), "directory": "out", **change}
    if given["directory"] == "model":
        given["directory"] = model
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        fastest(model, given.pop("data"), given.pop("directory"), **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_kept_is_what_the_table_says() -> None:
    found = Fastest((way("x", 4.0), Way("y", verdict="kept", ms=2.0)), None, None, "", 1, 1, 1, "cpu")
    assert found.kept.name == "y"
    assert found.times(found.kept) == 2.0
    assert found.times(Way("z")) is None


@pytest.mark.usefixtures("again")
def test_signals_still_reach_the_process(model: Path, rows: Path, tmp_path: Path) -> None:
    """OpenVINO's plugins, which each come with a stack for signals, once left one that was gone."""
    pytest.importorskip("openvino")
    fastest(model, str(rows), tmp_path / "out", runtimes=["openvino"], agreement=0.0, seconds=0.01)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
