"""Exported model directories: the same predictions by other runtimes, in fp32 and in fewer bits; hostile ones refused.

Most of it is tried on TextCNN, which is traced in a second; BERT comes pruned, which is the hardest of its shapes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch import model_directory
from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.structure import Structure
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.evaluation.benchmark import size
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.inference import Model, Predictor, load, save
from llm_arch.inference.export import onnx as onnx_runtime
from llm_arch.inference.export.comparison import Comparison
from llm_arch.inference.export.exported import Exported
from llm_arch.inference.export.exporting import Exporter, export
from llm_arch.inference.export.runtime import Precision
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

LABELS = LabelSpace(("a", "b", "c"))
TAGS = LabelSpace(("O", "B-x", "I-x"))
WORDS = ["light", "lamp", "kitchen", "warm", "cold", "open", "close", "door", "window", "music", "play", "stop"]


def texts(count: int = 24) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 15, (count,), generator=generator).tolist()
    return [" ".join(WORDS[(i * 5 + j * (i + 1)) % len(WORDS)] for j in range(n)) for i, n in enumerate(lengths)]


ROWS = [{"text": text} for text in texts()]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def spread(task: Task) -> Task:
    """Weights so far apart that a mistake shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.normal_(0, 0.3)
    return task.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    data = TextClassificationData(tokenizer=tokenizer, labels=list(LABELS.names), max_length=24)
    task = Task(
        TextCNN(vocabulary_size=30522, embedding_size=16, filters=64, widths=(3,)), SequenceClassification, LABELS
    )
    return save(spread(task), data, tmp_path_factory.mktemp("export") / "model", metrics={"after": {"accuracy": 0.5}})


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    """The model for ONNX Runtime, in fp32."""
    folder = model.with_name("onnx")
    found = export(load(model), folder, "onnx", ROWS)
    assert found.rows == len(ROWS)
    assert found.agreement == 1
    assert found.difference < 1e-4
    return folder


@pytest.fixture
def again(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of the same model need not be traced anew."""
    monkeypatch.setattr(onnx_runtime, "write_fp32", lambda graph, file, **_: shutil.copy(exported / "model.onnx", file))


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((directory / "llm_arch.json").read_text())
    change(values)
    (directory / "llm_arch.json").write_text(json.dumps(values))


def scores(predictions: list[Any]) -> torch.Tensor:
    return torch.tensor([list(p.scores.values()) for p in predictions])


# The same numbers


def test_predictions_are_those_of_the_model(model: Path, exported: Path) -> None:
    wanted = scores(Predictor(model)(texts()))
    for batch_tokens in (1, 40, 4096):
        predictor = Predictor(exported, batch_tokens=batch_tokens)
        found = predictor([*texts(), "lamp " * 40])
        torch.testing.assert_close(scores(found)[:-1], wanted, rtol=1e-4, atol=1e-5)
        assert predictor.truncated == 1
    assert wanted.std() > 0.1
    assert [p.index for p in found] == list(range(25))


def test_a_trainer_measures_the_same(model: Path, exported: Path, write_rows: Any, tmp_path: Path) -> None:
    path = write_rows([{"text": text, "label": LABELS.names[i % 3]} for i, text in enumerate(texts())])
    results = []
    for directory in (model, exported):
        one = load(directory)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        results += trainer.test(one.task(), datamodule=one.data_for(test=path), verbose=False)
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_pruned_tagger_with_a_crf(tmp_path: Path, tokenizer: str) -> None:
    """Uneven layers, one without heads and one without neurons; long rows in windows; tags, of every word once."""
    backbone = Pretrained("tiny:bert")
    dense = Structure.whole(backbone.model).of
    heads, neurons = dense.heads[0], dense.neurons[0]
    backbone.prune(Structure((0, 1), ((), tuple(range(heads - 1))), (tuple(range(0, neurons, 3)), ()), dense))
    data = TokenClassificationData(tokenizer=tokenizer, max_length=24, validation_fraction=0.0)
    data.label_space = TAGS  # type: ignore[misc]
    task = Task(backbone, lambda size, labels: TokenClassification(size, labels, crf=True), TAGS)
    folder = save(spread(task), data, tmp_path / "model")
    rows = [{"text": f"{text}, {text}. {text}"} for text in texts(12)]
    found = export(load(folder), tmp_path / "onnx", "onnx", rows)
    assert found.agreement == 1
    wanted, got = (Predictor(one)([row["text"] for row in rows]) for one in (folder, tmp_path / "onnx"))
    assert sum(len(p.entities) for p in wanted) > 12  # type: ignore[attr-defined]
    for one, other in zip(wanted, got, strict=True):
        ours, theirs = one.to_dict()["entities"], other.to_dict()["entities"]
        assert [e.pop("score") for e in ours] == pytest.approx([e.pop("score") for e in theirs], rel=1e-3)
        assert ours == theirs


@pytest.mark.usefixtures("again")
def test_openvino(model: Path, tmp_path: Path) -> None:
    rows, sizes = ROWS[:6], {}
    limits: dict[Precision, float] = {"fp32": 1e-4, "half": 0.1, "int8": 0.1}
    for precision, limit in limits.items():
        found = export(load(model), tmp_path / precision, "openvino", rows, precision=precision, agreement=0.7)
        assert found.difference < limit
        sizes[precision] = found.bytes
    assert sizes["half"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    predictor = Predictor(tmp_path / "int8")
    alone = torch.cat([scores(predictor([text])) for text in texts(4)])
    torch.testing.assert_close(scores(predictor(texts(4))), alone, rtol=1e-3, atol=1e-5)


def test_torch(model: Path, tmp_path: Path) -> None:
    found = export(load(model), tmp_path / "pt2", "torch", ROWS)
    assert found.difference < 1e-5
    with pytest.raises(UserError, match=r"holds a .pt2 file, and torch may run code .* --trust torch_export"):
        load(tmp_path / "pt2")
    predictor = Predictor(tmp_path / "pt2", trust=("torch_export",))
    torch.testing.assert_close(scores(predictor(texts())), scores(Predictor(model)(texts())), rtol=1e-4, atol=1e-5)
    half = export(load(model), tmp_path / "half", "torch", ROWS, precision="half", agreement=0.7)
    assert half.bytes < 0.6 * found.bytes
    assert found.difference < half.difference < 0.1


# Eight bits


@pytest.mark.usefixtures("again")
def test_int8_is_smaller_and_near_and_does_not_look_at_neighbours(model: Path, exported: Path, tmp_path: Path) -> None:
    found = export(load(model), tmp_path / "int8", "onnx", ROWS, precision="int8", agreement=0.7)
    assert 0 < found.relative < 0.1
    assert found.bytes < 0.3 * (exported / "model.onnx").stat().st_size
    predictor = Predictor(tmp_path / "int8")
    alone = torch.cat([scores(predictor([text])) for text in texts()])
    assert torch.equal(scores(predictor(texts())), alone)
    assert json.loads((tmp_path / "int8/llm_arch.json").read_text())["metrics"] == {}  # they were of other numbers


@pytest.mark.usefixtures("again")
def test_static_int8_takes_its_scales_from_rows(model: Path, tmp_path: Path) -> None:
    found = export(load(model), tmp_path / "static", "onnx", ROWS, precision="int8-static", agreement=0.7)
    assert 0 < found.relative < 0.2
    predictor = Predictor(tmp_path / "static")
    together, alone = scores(predictor(texts())), torch.cat([scores(predictor([text])) for text in texts()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("again")
def test_what_is_too_far_off_is_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(self: Exported, batch: Any, **options: Any) -> Any:
        found = forward(self, batch, **options)
        return found._replace(last_TD=-found.last_TD)

    forward = Exported.forward
    monkeypatch.setattr(Exported, "forward", coarse)
    with pytest.raises(UserError, match=r"in int8 [\d.]+% of 24 rows are predicted as before, and 90.0% must be"):
        export(load(model), tmp_path / "int8", "onnx", ROWS, precision="int8")
    with pytest.raises(UserError, match=r"the exported model's logits differ by up to .* more than 0.0001; .*not writ"):
        export(load(model), tmp_path / "fp32", "onnx", ROWS)
    assert list(tmp_path.iterdir()) == []


# The directory


def test_the_directory_is_a_model_directory(model: Path, exported: Path) -> None:
    model_directory.check_manifest(exported)
    record, before = model_directory.read(exported), model_directory.read(model)
    for name in ("task", "head", "label_space", "data", "metrics"):
        assert record[name] == before[name]
    assert record["records"]["export"]["runtime"] == "onnx"
    assert Comparison(**{k: record["records"]["export"][k] for k in Comparison.__dataclass_fields__}).rows == 24
    assert [one["role"] for one in record["lineage"]["parents"]] == ["exported from"]
    card = (exported / "README.md").read_text()
    assert "onnx, fp32: model.onnx, from input_ids, attention_mask to the head's logits" in card
    assert "AutoModel" not in card
    assert not list(exported.glob("backbone.*"))
    assert size.parameters(load(exported)) == size.parameters(load(model))
    assert size.file_bytes(exported)[0] > (exported / "model.onnx").stat().st_size


def test_it_has_the_precision_of_its_export(exported: Path) -> None:
    with pytest.raises(UserError, match="is exported, and computes in the precision it was exported in"):
        Predictor(exported, precision="bf16-mixed")


def test_it_is_no_model_to_train(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is exported and can be neither trained nor compressed; name the model it"):
        backbone_from(str(exported))
    loaded = load(exported)
    with pytest.raises(UserError, match="is exported already; name the model"):
        export(loaded, tmp_path / "more", "onnx", ROWS)
    with pytest.raises(UserError, match="is exported and can't be saved anew"):
        save(loaded.task(), loaded.data, tmp_path / "more")
    task = loaded.task().train()
    batch = loaded.data.collate(
        {"input_ids": [[5, 6]], "token_type_ids": [None], "index": [0], "epoch": 0}, labelled=False
    )
    with pytest.raises(UserError, match="can be neither trained nor looked into"):
        task(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "onnx", "precision": "half"}, "onnx does not do half: ONNX Runtime computes in fp32 or int8"),
        ({"runtime": "torch", "precision": "int8"}, "torch does not do int8: torch has no fast 8-bit"),
        ({"runtime": "openvino", "precision": "int8-static"}, "openvino does not do int8-static"),
        ({"runtime": "tvm"}, "there is no runtime 'tvm'; take one of onnx, torch, openvino"),
        ({"precision": "int4"}, "precision must be one of fp32, half, int8, int8-static, got 'int4'"),
        ({"precision": "int8", "agreement": 1.5}, r"agreement must be in \[0, 1\], got 1.5"),
        ({"rows": []}, "there are no rows to compare"),
        ({"rows": [{"words": "a"}]}, "row 1 has no 'text'"),
        ({"directory": "model"}, "is the model itself; name another folder"),
    ],
)
def test_bad_arguments(model: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"runtime": "onnx", "rows": ROWS, "directory": tmp_path / "out", **change}
    if given["directory"] == "model":
        given["directory"] = model
    with pytest.raises(UserError, match=message):
        export(load(model), given.pop("directory"), given.pop("runtime"), given.pop("rows"), **given)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(
    model: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"this needs onnxruntime; install it with: pip install 'llm_arch\[export\]'"):
        load(exported)
    for runtime, name in (("onnx", "onnx"), ("openvino", "openvino")):
        with pytest.raises(UserError, match=rf"this needs {name}; install it with: pip install 'llm_arch\[export\]'"):
            export(load(model), tmp_path / "out", runtime, ROWS)


def test_an_operation_that_onnx_lacks_is_named(model: Path, tmp_path: Path) -> None:
    loaded = load(model)
    forward = loaded.head.forward
    loaded.head.forward = lambda hidden, batch: torch.special.i0e(forward(hidden, batch))  # type: ignore[method-assign]
    sentence = (
        r"TextCNN with SequenceClassification can't be written as ONNX \(ONNX has nothing for prims.bessel_i0e\), "
        "which OpenVINO reads too; export it to torch"
    )
    exporter = Exporter(loaded, ROWS)
    for runtime in ("onnx", "openvino"):
        with pytest.raises(UserError, match=sentence):
            exporter.write(tmp_path / "out", runtime, "fp32", 1.0)
    assert list(tmp_path.iterdir()) == []


# Directories from elsewhere


def with_outside_data(directory: Path, location: str) -> None:
    """Let the embeddings lie in another file."""
    import onnx

    graph = onnx.load(directory / "model.onnx")
    tensor = max(graph.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    onnx.save(graph, directory / "model.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin"])
def test_weights_outside_of_the_folder_are_refused(copied: Path, location: str) -> None:
    (copied.parent / "secret.bin").write_bytes(b"0" * 2_000_000)
    with_outside_data(copied, location)
    with pytest.raises(UserError, match=r"model.onnx names a file outside the folder: .*; nothing there is read"):
        load(copied)


def test_links_out_of_the_folder_are_refused(copied: Path, exported: Path) -> None:
    (copied / "model.onnx").unlink()
    (copied / "model.onnx").symlink_to(exported / "model.onnx")
    with pytest.raises(UserError, match="is a link out of its folder"):
        load(copied)


def test_a_torch_file_is_never_opened_because_a_record_says_so(copied: Path) -> None:
    edit(copied, lambda record: record["backbone"].update(runtime="torch", trusted=True))
    (copied / "model.pt2").write_bytes(b"not looked at")
    with pytest.raises(UserError, match="holds a .pt2 file, and torch may run code"):
        load(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "tvm"}, "there is no runtime 'tvm'"),
        ({"runtime": ["onnx"]}, "there is no runtime"),
        ({"precision": "half"}, "damaged or incomplete"),
        ({"kind": "anything"}, "damaged or incomplete"),
        ({"inputs": ["input_ids", "../x"]}, "damaged or incomplete"),
        ({"inputs": 3}, "damaged or incomplete"),
        ({"hidden_size": 10**12}, r"no weight of head.safetensors is 1,000,000,000,000 wide"),
        ({"parameters": [1]}, "damaged or incomplete"),
        ({"max_length": "long"}, "damaged or incomplete"),
        ({"runtime": "openvino"}, "model.xml can't be run"),
    ],
)
def test_damaged_records(copied: Path, change: dict[str, Any], message: str) -> None:
    edit(copied, lambda record: record["backbone"].update(change))
    with pytest.raises(UserError, match=message):
        load(copied)


def test_damaged_and_foreign_graphs(copied: Path) -> None:
    for content in (b"", b"no graph at all", (copied / "model.onnx").read_bytes()[:5000]):
        (copied / "model.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"model.onnx can't be run \(.*\); export the model again"):
            load(copied)
    (copied / "model.onnx").unlink()
    with pytest.raises(UserError, match="model.onnx can't be run"):
        load(copied)


def test_a_graph_of_other_inputs_or_results(copied: Path, exported: Path) -> None:
    edit(copied, lambda record: record["backbone"].update(inputs=["input_ids", "attention_mask", "token_type_ids"]))
    with pytest.raises(UserError, match=r"model.onnx can't be run \(.*token_type_ids"):
        Predictor(copied)("cold light")
    loaded = load(exported)
    assert isinstance(loaded.backbone, Exported)
    loaded.backbone._run = lambda inputs: [torch.zeros(7, 3)]
    with pytest.raises(UserError, match="gives 7 results for 1 texts; export it again"):
        Predictor(Model(loaded.directory, loaded.backbone, loaded.head, loaded.data, loaded.record))("cold light")
