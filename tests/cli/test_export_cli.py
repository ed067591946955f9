"""`llm-arch export`: written, compared, and served by the other verbs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.backbones.convolutional import TextCNN
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference import save
from llm_arch.inference.export import onnx
from llm_arch.task import Task
from llm_arch.types import LabelSpace


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A small model, with the rows it could be measured on beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("export_cli")
    data = TextClassificationData(tokenizer=tokenizer, labels=["off", "on"], max_length=32)
    backbone = TextCNN(vocabulary_size=30522, embedding_size=8, filters=64, widths=(3,))
    task = Task(backbone, SequenceClassification, LabelSpace(("off", "on"))).eval()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.normal_(0, 0.3)
    rows = [{"text": f"{label} light {i}", "label": label} for i in range(6) for label in ("off", "on")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return save(task, data, folder / "model")


@pytest.fixture(scope="module")
def dense(source: Path) -> Path:
    """The graph in fp32, traced once."""
    from llm_arch.inference.directory import load
    from llm_arch.inference.export.exporting import export

    export(load(source), source.with_name("dense"), "onnx", [{"text": "on light"}, {"text": "off"}])
    return source.with_name("dense")


@pytest.fixture
def here(source: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, "model")
    shutil.copy(source.with_name("rows.jsonl"), "rows.jsonl")
    monkeypatch.setattr(onnx, "write_fp32", lambda graph, file, **_: shutil.copy(dense / "model.onnx", file))
    return tmp_path


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.usefixtures("here")
def test_export_predict_test_and_benchmark(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("export", "--model", "model", "--to", "onnx", "--data", "rows.jsonl")
    assert (done.code, done.err) == (0, "")
    assert "onnx, fp32: " in done.out
    assert "on 12 rows of rows.jsonl: 100.0% predicted as before, logits differ by up to " in done.out
    folder = done.out.split("llm-arch predict --model ")[1].strip()
    assert Path(folder).name == "model-onnx"
    wanted, found = (
        lines(run("predict", "--model", name, *more, "--text", "on light", "off").out)
        for name, more in (("model", ()), (folder, ("--runtime", "onnx", "--check")))
    )
    assert [one.keys() for one in found] == [one.keys() for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    tested = [run("test", "--model", name, "--data", "rows.jsonl").out for name in ("model", folder)]
    metrics = [[line.split() for line in out.splitlines() if "accuracy" in line] for out in tested]
    assert metrics[0] == metrics[1] != []
    monkeypatch.setattr("llm_arch.evaluation.benchmark.memory.peak_memory", lambda *arguments: 10**6)
    fast = ("--seconds", "0.01", "--lengths", "8", "--batch-size", "2")
    done = run("benchmark", "--model", "model", "--against", folder, *fast)
    assert (done.code, done.err) == (0, "")
    assert "model-onnx" in done.out


@pytest.mark.usefixtures("here")
def test_eight_bits_on_made_rows_and_on_own(run: Any) -> None:
    done = run("export", "--model", "model", "--to", "onnx", "--int8", "--agreement", "0.5", "--output", "made/int8")
    assert (done.code, done.err) == (0, "")
    assert "made rows: " in done.out
    own = ("--int8", "static", "--data", "rows.jsonl", "--agreement", "0.5", "--output", "static")
    assert run("export", "--model", "model", "--to", "onnx", *own).code == 0
    for folder, precision in (("made/int8", "int8"), ("static", "int8-static")):
        assert json.loads(Path(folder, "llm_arch.json").read_text())["backbone"]["precision"] == precision
        (line,) = lines(run("predict", "--model", folder, "--text", "on light").out)
        assert set(line) == {"text", "label", "score", "scores"}
    before = Path("static/manifest.json").read_text()
    again = run("export", "--model", "static", "--to", "onnx", "--output", "static")
    assert "static is exported already; name the model that it was exported from" in again.sentence
    assert Path("static/manifest.json").read_text() == before


@pytest.mark.usefixtures("here")
def test_the_fastest(run: Any) -> None:
    fast = ("--seconds", "0.01", "--points", "100", "--threads", "1")
    done = run("export", "--model", "model", "--to", "fastest", "--data", "rows.jsonl", *fast)
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    for way in ("as it is, fp32", "onnx, fp32", "onnx, int8-static", "openvino, int8"):
        assert any(row[: len(way.split())] == way.split() for row in rows)
    assert "limit: accuracy may lose at most 100 points; 12 rows timed one by one" in done.out
    folder = done.out.split("llm-arch predict --model ")[1].strip()
    assert Path(folder).name == "model-fastest"
    assert done.out.split("kept: ")[1].split(", ")[0] in ("as it is", "onnx", "openvino")
    assert run("predict", "--model", folder, "--text", "on light").code == 0
    few = run("export", "--model", "model", "--to", "fastest", "--data", "rows.jsonl", *fast, "--runtimes", "onnx")
    assert "openvino, fp32" not in few.out


@pytest.mark.usefixtures("here")
def test_torch_needs_trust(run: Any) -> None:
    done = run("export", "--model", "model", "--to", "torch", "--half", "--agreement", "0.5", "--output", "pt2")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip().endswith("llm-arch predict --model pt2 --trust torch_export")
    assert "--trust torch_export" in run("predict", "--model", "pt2", "--text", "on").sentence
    assert run("predict", "--model", "pt2", "--trust", "torch_export", "--text", "on").code == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "model"), "the following arguments are required: --to"),
        (("--model", "model", "--to", "tensorrt"), "invalid choice: 'tensorrt'"),
        (("--model", "nowhere", "--to", "onnx"), "nowhere: no such directory"),
        (("--model", "model", "--to", "onnx", "--int8", "--half"), "--half and --int8 exclude each other"),
        (("--model", "model", "--to", "onnx", "--int8", "static"), "sets its scales by rows of yours"),
        (("--model", "model", "--to", "onnx", "--half"), "onnx does not do half"),
        (("--model", "model", "--to", "torch", "--int8"), "torch does not do int8"),
        (("--model", "model", "--to", "onnx", "--agreement", "0.5"), "--agreement is for --int8 and --half"),
        (("--model", "model", "--to", "onnx", "--int8", "--agreement", "2"), "agreement must be in [0, 1], got 2.0"),
        (("--model", "model", "--to", "onnx", "--data", "none.jsonl"), "none.jsonl"),
        (("--model", "model", "--to", "onnx", "--output", "model"), "is the model itself; name another folder"),
        (("--model", "model", "--to", "onnx", "--output", "rows.jsonl"), "rows.jsonl is a file; name another folder"),
        (("--model", "model", "--to", "onnx", "--points", "1"), "--points is for --to fastest; leave it out"),
        (("--model", "model", "--to", "fastest"), "--to fastest measures on rows of yours; name a file with --data"),
        (("--model", "model", "--to", "fastest", "--int8"), "tries every precision by itself"),
        (
            ("--model", "model", "--to", "fastest", "--data", "rows.jsonl", "--runtimes", "tvm"),
            "runtimes must be of onnx and openvino, got 'tvm'",
        ),
        (("--model", "model", "--to", "onnx", "--runtime", "onnx"), "model is not exported, and --runtime is onnx"),
    ],
)
def test_bad_input(run: Any, arguments: tuple[str, ...], message: str) -> None:
    assert message in run("export", *arguments).sentence
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["model", "rows.jsonl"]


@pytest.mark.usefixtures("here")
def test_verbs_that_can_not_do_with_a_graph(run: Any, dense: Path) -> None:
    wrong = run("predict", "--model", str(dense), "--runtime", "openvino", "--text", "on")
    assert "is of onnx, and --runtime is openvino; export it with `llm-arch export --to openvino`" in wrong.sentence
    fit = run("fit", "-c", "task/text_classification", "--model.backbone", str(dense), "--data.train", "rows.jsonl")
    assert "is exported and can be neither trained nor compressed" in fit.sentence
