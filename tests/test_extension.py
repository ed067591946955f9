"""A head, a data format and a backbone of the user's own, in one file outside the package, named in YAML alone."""

import importlib
import json
import logging
import sys

import pytest
import torch
import yaml

from llm_arch.backbones.load import backbone_from
from llm_arch.cli.main import main
from llm_arch.inference.directory import load
from llm_arch.inference.predictor import Predictor
from llm_arch.types import UserError

MODULE = "outside_parts"
SOURCE = '''
"""Parts of somebody else."""

from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import mse_loss
from torchmetrics import MeanSquaredError, MetricCollection

from llm_arch.data.module import DataModule
from llm_arch.types import Backbone, Head, Hidden, LabelSpace, Loss, Prediction


class Bag(Backbone):
    """A word is its embedding: no order, no layers worth the name."""

    max_length = None
    pooling = "mean"

    def __init__(self, width: int = 8, vocabulary: int = 30522):
        super().__init__()
        self.hidden_size = width
        self.words = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)

    @property
    def embeddings(self):
        return self.words

    @property
    def layers(self):
        return [self.mix]

    def forward(self, batch, *, inputs_embeds=None, all_hidden=False):
        first_TD = self.words(batch.input_ids) if inputs_embeds is None else inputs_embeds
        last_TD = torch.tanh(self.mix(first_TD))
        return Hidden(last_TD, (first_TD, last_TD) if all_hidden else None)

    def save(self, directory):
        save_file(self.state_dict(), directory / "bag.safetensors")
        return {"width": self.hidden_size, "vocabulary": self.words.num_embeddings}

    @classmethod
    def load(cls, directory, record):
        backbone = cls(record["width"], record["vocabulary"])
        backbone.load_state_dict(load_file(directory / "bag.safetensors"))
        return backbone


@dataclass(frozen=True)
class Rating(Prediction):
    """How warm a text is."""

    warmth: float


class Warmth(Head):
    """One number a text, by squared error."""

    major = "mse"
    mode = "min"

    def __init__(self, hidden_size: int, label_space: LabelSpace, *, scale: float = 1.0):
        super().__init__()
        self.label_space = label_space
        self.scale = scale
        self.rate = nn.Linear(hidden_size, 1)

    def forward(self, hidden, batch):
        return self.scale * self.rate(batch.mean(hidden.last_TD))[:, 0]

    def loss(self, hidden, batch):
        return Loss(mse_loss(self(hidden, batch), batch.labels["warmth"], reduction="sum"), float(batch.size))

    def metrics(self):
        return MetricCollection({"mse": MeanSquaredError()})

    def metric_inputs(self, logits, batch):
        return logits, batch.labels["warmth"]

    def decode(self, logits, batch):
        return [Rating(i, value) for i, value in zip(batch.index.tolist(), logits.tolist(), strict=True)]


class WarmthData(DataModule):
    """Rows with a sentence and how warm it is."""

    label_space = LabelSpace(())
    columns = {"sentence": True, "warmth": False}
    schema = {"sentence": pa.string(), "warmth": pa.float32()}

    def fault(self, values, labelled):
        return None if values["sentence"] else "says nothing"

    def texts(self, values):
        return values["sentence"], None

    def kept(self, values, labelled):
        return {"sentence": values["sentence"], "warmth": float(values["warmth"]) if labelled else None}

    def label_tensors(self, columns):
        return {"warmth": torch.tensor(columns["warmth"])}
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """A folder with the parts, a config, and what `fit` made of them."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    rows = [{"sentence": f"{'warm' if i % 2 else 'cold'} room {i}", "warmth": float(i % 2)} for i in range(24)]
    for name, part in (("train", rows[:16]), ("validation", rows[16:20]), ("test", rows[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = {
        "model": {
            "backbone": {"class_path": f"{MODULE}.Bag", "init_args": {"width": 12}},
            "head": {"class_path": f"{MODULE}.Warmth", "init_args": {"scale": 2.0}},
            "learning_rate": 0.05,
        },
        "data": {
            "class_path": f"{MODULE}.WarmthData",
            "init_args": {"tokenizer": tokenizer, "batch_size": 4, "max_length": 16}
            | {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        },
        "trainer": {"max_epochs": 8, "accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch, at(patch, folder):
        assert main(["fit", "-c", "mine.yaml", "--output", "run"]) == 0
    return folder


class at:
    """As from a shell in that folder: nothing of the outside module is imported yet, nothing stays behind."""

    def __init__(self, patch, folder):
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.delitem(sys.modules, MODULE, raising=False)
        for name in ("LLM_ARCH_OUTPUT", "PL_GLOBAL_SEED"):
            patch.delenv(name, raising=False)
        self.levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        sys.modules.pop(MODULE, None)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)


@pytest.fixture
def there(trained, monkeypatch):
    with at(monkeypatch, trained):
        yield trained


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_fit_writes_a_model_that_learned(there):
    metrics = json.loads((there / "run" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["after"]["mse"] < 0.1 < metrics["before"]["mse"]
    record = json.loads((there / "run" / "model" / "llm_arch.json").read_text())
    for part, name in (("backbone", "Bag"), ("head", "Warmth"), ("data", "WarmthData")):
        assert record[part]["class_path"] == f"{MODULE}.{name}"
    assert record["head"]["init_args"] == {"scale": 2.0}


def test_predict_only_with_trust(there, capsys):
    command = ["predict", "--model", "run/model", "--text", "warm room 3", "cold room 4"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"allow it with --trust {MODULE}" in said.err
    assert MODULE not in sys.modules
    assert main([*command, "--trust", "another_module"]) == 2
    assert MODULE not in sys.modules
    capsys.readouterr()
    assert main([*command, "--trust", MODULE]) == 0
    warm, cold = lines(capsys.readouterr().out)
    assert warm["sentence"] == "warm room 3"
    assert warm["warmth"] > 0.6 > 0.4 > cold["warmth"]


def test_test_only_with_trust(there, capsys):
    command = ["test", "--model", "run/model", "--data", "test.jsonl", "--output", "numbers.json"]
    assert main(command) == 2
    assert f"--trust {MODULE}" in capsys.readouterr().err
    assert main([*command, "--trust", MODULE]) == 0
    found = json.loads((there / "numbers.json").read_text())["metrics"]
    expected = json.loads((there / "run" / "metrics.json").read_text())["after"]["mse"]
    assert found["mse"] == pytest.approx(expected, rel=0.02)  # the run was in fp32, this may be in bf16


def test_every_part_is_guarded(there):
    """One trusted part does not open the door to another."""
    model = there / "run" / "model"
    record = json.loads((model / "llm_arch.json").read_text())
    for part in ("backbone", "head", "data"):
        changed = json.loads(json.dumps(record))
        changed[part]["class_path"] = "this.Door"
        copy = there / f"changed_{part}"
        copy.mkdir()
        for path in model.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        (copy / "llm_arch.json").write_text(json.dumps(changed))
        sys.path.insert(0, str(there))
        with pytest.raises(UserError, match=r"allow it with --trust this"):
            load(copy, trust=(MODULE,))
        assert "this" not in sys.modules


def test_loaded_backbone_gives_the_same_states(there):
    sys.path.insert(0, str(there))
    model = load(there / "run" / "model", trust=(MODULE,), check=True)
    parts = importlib.import_module(MODULE)
    assert type(model.backbone) is parts.Bag
    assert model.backbone.hidden_size == 12
    assert model.head.scale == 2.0
    data = model.data_for(test=str(there / "test.jsonl"))
    batch = next(iter(data.test_dataloader()))
    saved = model.backbone.save(there)
    again = parts.Bag.load(there, saved)
    with torch.no_grad():
        torch.testing.assert_close(again(batch).last_TD, model.backbone(batch).last_TD, rtol=0, atol=0)
    # By name, as for training on; the module is imported by now, so there is nothing left to guard.
    with torch.no_grad():
        states = backbone_from(str(there / "run" / "model"))(batch).last_TD
    assert torch.equal(states, again(batch).last_TD)


def test_predictor_is_the_trained_model(there):
    sys.path.insert(0, str(there))
    predictor = Predictor(there / "run" / "model", trust=(MODULE,))
    rows = [json.loads(line) for line in (there / "test.jsonl").read_text().splitlines()]
    found = list(predictor.stream(rows))
    mse = sum((p.warmth - row["warmth"]) ** 2 for p, row in zip(found, rows, strict=True)) / len(rows)
    assert mse == pytest.approx(json.loads((there / "run" / "metrics.json").read_text())["after"]["mse"], abs=1e-6)


def test_a_class_that_is_not_there_is_named(there, capsys):
    assert main(["fit", "-c", "mine.yaml", "--model.head", f"{MODULE}.Nothing", "--output", "other"]) == 2
    assert f"{MODULE}.Nothing" in capsys.readouterr().err
    assert not (there / "other").exists()


def test_taught_only_with_trust(there, capsys):
    """By a model whose parts the run does not name itself; and a model teaches what becomes of it."""
    recipe = ["--recipe", "compress/distillation", "--data", "train.jsonl", "--model.loss_terms.logits", "0"]
    recipe += ["--model.loss_terms.states", "1"]
    command = ["compress", "--model", "run/model", *recipe, "--output", "compressed"]
    taught = ["fit", "-c", "task/regression", "-c", "backbone/textcnn", "-c", "compress/distillation"]
    taught += ["--data.train", "train.jsonl", "--data.text_column", "sentence", "--data.target_column", "warmth"]
    taught += ["--data.text_pair_column", "null", "--teacher", "run/model", "--output", "taught"]
    for line in (command, taught):
        assert main(line) == 2
        assert f"allow it with --trust {MODULE}" in capsys.readouterr().err
        assert MODULE not in sys.modules
        assert main([*line, "--trust", "nowhere_at_all"]) == 2
        assert "--trust nowhere_at_all: it can't be imported" in capsys.readouterr().err
    assert main([*command, "--trust", MODULE]) == 0
    sys.modules.pop(MODULE)
    capsys.readouterr()
    # It is read then, and says why it can't teach this head.
    assert main([*taught, f"--trust={MODULE}"]) == 2
    assert "has the head Warmth, and the student Regression" in capsys.readouterr().err
    assert main([*taught, "--trust"]) == 2
    assert "--trust needs the name of a module" in capsys.readouterr().err
