"""Saved and loaded again: the same logits, an exit to plain transformers, and nothing run that was not trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.collate import make_batch
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.inference import load, save
from llm_arch.task import Task
from llm_arch.types import Batch, LabelSpace, UserError

ABC = LabelSpace(("a", "b", "c"), (6, 3, 1))
ROWS = [[101, 2422, 2006, 102], [101, 102], [101, 4010, 2125, 2422, 2422, 102]]
DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2",
    "vocab_size": 30522,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}


def batch_of(rows: list[list[int]] | None = None) -> Batch:
    rows = rows or ROWS
    return make_batch({"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))})


def data_of(tokenizer: str, **options: Any) -> TextClassificationData:
    return TextClassificationData(tokenizer=tokenizer, labels=list(ABC.names), **{"max_length": 16, **options})


def task_of(backbone: Any = "tiny:bert", labels: LabelSpace = ABC, pooling: Any = None, **options: Any) -> Task:
    task = Task(backbone, lambda size, space: SequenceClassification(size, space, **options), labels, pooling=pooling)
    with torch.no_grad():
        task.head.classify.weight.normal_()  # type: ignore[union-attr, operator]
        task.head.classify.bias.normal_()  # type: ignore[union-attr, operator]
    return task.eval()


@torch.no_grad()
def logits_of(part: Any) -> torch.Tensor:
    found = part.head(part.backbone(batch_of()), batch_of())
    assert isinstance(found, torch.Tensor)
    return found


@pytest.fixture
def saved(tmp_path: Path, tokenizer: str) -> Path:
    return save(task_of(), data_of(tokenizer), tmp_path / "model")


def edit(directory: Path, change: Callable[[dict[str, Any]], Any], name: str = "llm_arch.json") -> None:
    values = json.loads((directory / name).read_text())
    change(values)
    (directory / name).write_text(json.dumps(values))


# The same numbers


@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:gpt2", "tiny:modernbert", "tiny:llama", DEBERTA])
@pytest.mark.parametrize("pooling", [None, "max"])
def test_logits_come_back_equal(backbone: Any, pooling: Any, tmp_path: Path, tokenizer: str) -> None:
    part = Pretrained(config=backbone) if isinstance(backbone, dict) else backbone
    task = task_of(part, pooling=pooling)
    before = logits_of(task)
    save(task, data_of(tokenizer), tmp_path / "model")
    assert torch.equal(logits_of(task), before)
    model = load(tmp_path / "model", check=True)
    assert torch.equal(logits_of(model), before)
    assert model.backbone.pooling == task.backbone.pooling
    assert not any(m.training for m in (*model.backbone.modules(), *model.head.modules()))
    assert torch.equal(logits_of(model.task()), before)


def test_a_model_saved_again_is_the_same(saved: Path, tmp_path: Path, tokenizer: str) -> None:
    first = load(saved)
    save(first.task(), data_of(tokenizer), tmp_path / "again")
    assert torch.equal(logits_of(load(tmp_path / "again")), logits_of(first))
    assert load(tmp_path / "again").record["head"] == first.record["head"]


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (ABC, {"class_weights": "balanced", "label_smoothing": 0.2, "dropout": 0.3}),
        (ABC, {"class_weights": {"b": 2.0}}),
        (LabelSpace(("no", "yes")), {"binary": True, "threshold": 0.7}),
        (LabelSpace(("x", "y"), None, multi=True), {"threshold": 0.2, "pooling": "last"}),
    ],
)
def test_the_head_comes_back_as_it_was_built(
    labels: LabelSpace, options: dict[str, Any], tmp_path: Path, tokenizer: str
) -> None:
    task = task_of(labels=labels, **options)
    delimiter = "|" if labels.multi else None
    data = TextClassificationData(tokenizer=tokenizer, labels=list(labels.names), label_delimiter=delimiter)
    save(task, data, tmp_path / "model")
    model = load(tmp_path / "model")
    head, before = model.head, task.head
    assert isinstance(head, SequenceClassification)
    assert isinstance(before, SequenceClassification)
    assert model.label_space == labels == model.data.label_space
    for name in ("binary", "threshold", "label_smoothing", "pooling"):
        assert getattr(head, name) == getattr(before, name)
    assert head.dropout.p == before.dropout.p
    assert (head.weights_C is None) == (before.weights_C is None)
    if head.weights_C is not None:
        assert before.weights_C is not None
        assert torch.equal(head.weights_C, before.weights_C)


@pytest.mark.parametrize("options", [{}, {"pooling": None}, {"pooling": "max"}])  # the command line names them all
@pytest.mark.parametrize("pooling", [None, "last"])
def test_a_head_that_pools_otherwise_than_its_backbone_comes_back_so(
    options: dict[str, Any], pooling: Any, tmp_path: Path, tokenizer: str
) -> None:
    data = QuestionAnsweringData(tokenizer=tokenizer, max_length=16)
    head = partial(QuestionAnswering, **options)
    task = Task("tiny:bert", head, data.label_space, pooling=pooling)
    assert isinstance(task.head, QuestionAnswering)
    save(task, data, tmp_path / "model")
    found = load(tmp_path / "model").head
    assert isinstance(found, QuestionAnswering)
    assert found.pooling == task.head.pooling
    assert found.pooling == (options.get("pooling") or pooling or "first")


def test_how_rows_are_read_comes_back(tmp_path: Path, tokenizer: str) -> None:
    data = data_of(tokenizer, max_length=9, text_column="question", text_pair_column="answer", label_column="kind")
    save(task_of(), data, tmp_path / "model")
    model = load(tmp_path / "model")
    assert model.data.record() == data.record()
    assert model.data.columns == {"question": True, "answer": True, "kind": False}
    assert model.data.tokenizer.encode("cold light") == data.tokenizer.encode("cold light")


def test_dropout_that_was_set_comes_back(tmp_path: Path, tokenizer: str) -> None:
    task = Task("tiny:bert", SequenceClassification, ABC, dropout=0.4)
    save(task, data_of(tokenizer), tmp_path / "model")
    backbone = load(tmp_path / "model").backbone
    assert {m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)} == {0.4}


def test_training_goes_on_after_saving(tmp_path: Path, tokenizer: str) -> None:
    task = task_of().train()
    save(task, data_of(tokenizer), tmp_path / "model")
    assert task.backbone.training
    loss = task.head(task.backbone(batch_of()), batch_of()).sum()
    loss.backward()
    assert task.backbone.embeddings.weight.grad is not None


# The folder


def test_what_lies_in_the_folder(saved: Path) -> None:
    names = {p.name for p in saved.iterdir()}
    ours = {"llm_arch.json", "manifest.json", "head.safetensors", "README.md"}
    assert names >= ours | {"config.json", "model.safetensors", "tokenizer.json"}
    assert {p.suffix for p in saved.iterdir()} <= {".json", ".safetensors", ".md", ".txt"}
    record = json.loads((saved / "llm_arch.json").read_text())
    assert record["schema_version"] == 1
    assert record["task"] == "SequenceClassification"
    assert record["head"]["init_args"] == {}
    assert set(record["lineage"]["versions"]) >= {"torch", "transformers", "python"}


def test_plain_transformers_loads_backbone_and_tokenizer(saved: Path) -> None:
    model, report = AutoModel.from_pretrained(saved, output_loading_info=True, add_pooling_layer=False)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(saved)
    encoded = tokenizer(["cold light", "on"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.eval()(**encoded).last_hidden_state
        ours = load(saved)
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)]
        flat = ours.backbone(batch_of(rows)).last_TD
    torch.testing.assert_close(flat, states[encoded.attention_mask.bool()], rtol=1e-5, atol=1e-5)


def test_metrics_and_lineage_are_recorded(tmp_path: Path, tokenizer: str) -> None:
    metrics = {"split": "test", "after": {"accuracy": 0.5}}
    save(task_of(), data_of(tokenizer), tmp_path / "model", metrics=metrics, lineage={"seed": 3})
    record = load(tmp_path / "model").record
    assert record["metrics"] == metrics
    assert record["lineage"]["seed"] == 3
    assert "| accuracy | | 0.5000 |" in (tmp_path / "model" / "README.md").read_text()


def test_a_failure_while_saving_leaves_the_old_model(
    saved: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    monkeypatch.setattr(
        "llm_arch.inference.directory.save_file", lambda *a: (_ for _ in ()).throw(OSError("No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        save(task_of(), data_of(tokenizer), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
    load(saved, check=True)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than a model"):
        save(task_of(), data_of(tokenizer), tmp_path)


# As a source


@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:gpt2"])
def test_a_model_directory_is_a_backbone_for_another_task(backbone: str, tmp_path: Path, tokenizer: str) -> None:
    first = task_of(backbone)
    save(first, data_of(tokenizer), tmp_path / "model")
    second = Task(str(tmp_path / "model"), SequenceClassification, LabelSpace(("p", "q")))
    assert isinstance(second.backbone, Pretrained)
    assert all(m.training for m in second.backbone.modules())
    with torch.no_grad():
        assert torch.equal(second.backbone.eval()(batch_of()).last_TD, first.backbone(batch_of()).last_TD)
    assert second.backbone.layout == "flat"
    save(second, data_of(tokenizer), tmp_path / "second")
    assert torch.equal(logits_of(load(tmp_path / "second")), logits_of(second.eval()))


def test_names_of_backbones(saved: Path, tmp_path: Path) -> None:
    assert isinstance(backbone_from("tiny:gpt2"), Pretrained)
    backbone = Pretrained("tiny:bert")
    backbone.save(tmp_path / "plain")
    again = backbone_from(str(tmp_path / "plain"))
    assert torch.equal(again.embeddings.weight, backbone.embeddings.weight)


# Damage


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_byte_is_found_when_asked_for(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[-20] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is not the file that was saved"):
        load(saved, check=True)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, -8])
def test_truncated_weights(saved: Path, name: str, keep: int) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model is damaged or incomplete \(.+\); fetch or train the model again"):
        load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "config.json", "llm_arch.json"])
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=r"is damaged or incomplete|is no model directory of llm-arch"):
        load(saved)


def test_no_tokenizer(saved: Path) -> None:
    # transformers makes up an empty one, and every text would become unknown words.
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (saved / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"is damaged or incomplete \(no tokenizer.json\)"):
        load(saved)


@pytest.mark.parametrize("text", ["{", "[]", "", "{}"])
def test_a_damaged_configuration(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"damaged or incomplete|needs a model_type"):
        load(saved)
    with pytest.raises(UserError, match=r"damaged or incomplete|needs a model_type"):
        backbone_from(str(saved))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["head"].pop("class_path"),
        lambda r: r["head"].update(init_args={"colour": 3}),
        lambda r: r["head"].update(init_args=3),
        lambda r: r["head"].update(class_path=3),
        lambda r: r["head"].pop("init_args"),
        lambda r: r["backbone"].pop("class_path"),
        lambda r: r["backbone"].update(class_path=[]),
        lambda r: r["label_space"].pop("names"),
        lambda r: r["label_space"].update(names=3),
        lambda r: r["data"].update(init_args={"nothing": 1}),
        lambda r: r["data"].pop("class_path"),
        lambda r: r["label_space"].update(names=["a", "b"], counts=None),
        lambda r: r["head"].update(init_args={"threshold": "high"}),
    ],
)
def test_a_damaged_record(saved: Path, change: Any) -> None:
    edit(saved, change)
    with pytest.raises(UserError, match=r"model is damaged or incomplete \(.+\); fetch or train the model again"):
        load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Path, name: str, value: float) -> None:
    weights = load_file(saved / name)
    next(iter(weights.values())).view(-1)[0] = value
    save_file(weights, saved / name)
    with pytest.raises(UserError, match="holds weights that are not finite; the training run that wrote it went wrong"):
        load(saved)


def test_weights_of_another_model(saved: Path, tmp_path: Path) -> None:
    Pretrained("tiny:gpt2").save(tmp_path / "other")
    (saved / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"does not fit .*config.json: .* missing, .* unknown"):
        load(saved)


def test_a_pickle_instead_of_a_model(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="model.pt is a file; pickled files are never loaded"):
        load(tmp_path / "model.pt")


# Trust

HEAD = """
from pathlib import Path
Path({marker!r}).touch()
from llm_arch.heads.classification import SequenceClassification
from llm_arch.data.classification import TextClassificationData
from llm_arch.backbones.pretrained import Pretrained
class Mine(SequenceClassification):
    def __init__(self, size, labels, *, factor: float = 1.0):
        super().__init__(size, labels)
        self.factor = factor
    def forward(self, hidden, batch):
        return super().forward(hidden, batch) * self.factor
class Backbone(Pretrained):
    pass
class Data(TextClassificationData):
    pass
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's own, by name, with the file it leaves behind when it is imported."""
    name = f"parts_of_mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(HEAD.format(marker=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, tmp_path / "ran"
    sys.modules.pop(name, None)


@pytest.mark.parametrize(("part", "kind"), [("head", "Mine"), ("backbone", "Backbone"), ("data", "Data")])
def test_a_model_directory_runs_no_code_of_others(saved: Path, foreign: Any, part: str, kind: str) -> None:
    module, marker = foreign
    edit(saved, lambda r: r[part].update(class_path=f"{module}.{kind}"))
    with pytest.raises(UserError, match=f"uses {module}.{kind}, which is code outside .* --trust {module}"):
        load(saved)
    assert not marker.exists()
    model = load(saved, trust=(module,))
    assert marker.exists()
    assert type(getattr(model, part)).__name__ == kind


def test_a_head_of_ones_own_is_saved_and_loaded(foreign: Any, tmp_path: Path, tokenizer: str) -> None:
    module, _ = foreign
    mine = __import__(module).Mine
    task = Task("tiny:bert", lambda size, labels: mine(size, labels, factor=3.0), ABC).eval()
    save(task, data_of(tokenizer), tmp_path / "model")
    record = json.loads((tmp_path / "model" / "llm_arch.json").read_text())
    assert record["head"] == {"class_path": f"{module}.Mine", "init_args": {"factor": 3.0}}
    assert torch.equal(logits_of(load(tmp_path / "model")), logits_of(task))


@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.Popen", "llm_arch.types.Batch", "llm_arch.data.module.DataModule"]
)
def test_a_record_that_names_something_else_runs_nothing(saved: Path, path: str) -> None:
    edit(saved, lambda r: r["head"].update(class_path=path, init_args={}))
    with pytest.raises(UserError, match=f"uses {path}, which is no Head"):
        load(saved)


def test_a_configuration_with_code_of_its_own_runs_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked instead of refused"))
    (saved / "evil.py").write_text(f"from pathlib import Path; Path({str(tmp_path / 'ran')!r}).touch()")
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    edit(saved, lambda c: c.update(auto_map=names), "config.json")
    model = load(saved)  # a model type that transformers knows is built by its own code
    _ = model.data.tokenizer
    edit(saved, lambda c: c.update(model_type="evil"), "config.json")
    with pytest.raises(UserError, match="transformers knows no model_type 'evil'"):
        load(saved)
    assert not (tmp_path / "ran").exists()
