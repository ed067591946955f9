"""`fine_tune_first`: the joint recipe on a model that was not trained yet, stopped and resumed, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from llm_arch.inference import load
from llm_arch.inference.directory import load as load_model

FEW = ("--trainer.max_epochs", "5", "--trainer.max_steps", "-1", "--data.batch_size", "8")


class Stop(Callback):
    """Breaks a run in a folder off in its third epoch."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Break off."""
        if trainer.current_epoch == 2 and Path(trainer.default_root_dir).name == self.folder:
            raise RuntimeError("it broke")


def smaller(path: str, **more: Any) -> str:
    """The shipped recipe for a tiny model: by multiply-accumulates, on few rows."""
    from llm_arch.cli import configs

    recipe = yaml.safe_load(configs.find("compress/joint").read_text(encoding="utf-8"))
    pruning = recipe["trainer"]["callbacks+"][-1]["init_args"]
    pruning |= {"target": "1.5x macs", "rows": 8, "multiple": 1}
    Path(path).write_text(yaml.safe_dump(recipe | more), encoding="utf-8")
    return path


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture
def joint(fit: Any, rough_times: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Stop.__module__])

    def do(*more: str, **keys: Any) -> Any:
        return fit("-c", smaller("joint.yaml", **keys), *FEW, *more)

    return do


def test_teacher_first_then_all_three(joint: Any, run: Any) -> None:
    stop = f"--trainer.callbacks+={__name__}.Stop"
    # First within the teacher's run, then within the other, after pruning and before training for int8.
    for folder in ("teacher", "broken"):
        with pytest.raises(RuntimeError, match="it broke"):
            joint("--output", "broken", "--resume", "auto", stop, "--trainer.callbacks.folder", folder)
        assert not Path("broken/model").exists()
    done = joint("--output", "broken", "--resume", "auto")
    assert (done.code, done.err) == (0, "")
    assert "starting fresh" not in done.out
    assert "first the teacher" not in done.out
    whole = joint("--output", "whole")
    assert (whole.code, whole.err) == (0, "")
    assert "first the teacher: the same model without what compresses it, in whole/teacher" in whole.out
    for name in ("teacher/model/model.safetensors", "model/model.safetensors", "model/head.safetensors"):
        assert Path("broken", name).read_bytes() == Path("whole", name).read_bytes(), name
    teacher, record = read("whole/teacher/model/llm_arch.json"), read("whole/model/llm_arch.json")
    assert teacher["records"] == {}
    assert teacher["lineage"]["config"]["trainer"]["max_epochs"] == 3
    found = record["records"]
    assert found["compression"]["methods"] == [
        "quantization-aware training",
        "structured pruning",
        "distillation",
    ]
    assert found["pruning"]["target"] == "1.5x macs"
    assert found["quantization"]["steps"] > 0
    assert [parent["role"] for parent in record["lineage"]["parents"]] == ["model"]
    assert record["metrics"]["before"] == pytest.approx(teacher["metrics"]["after"], abs=1e-6)
    structure = load("whole").backbone.structure
    assert not structure.is_whole
    # What int8 rounds to, the run has trained: its export predicts alike.
    done = run("export", "--model", "whole", "--to", "onnx", "--int8", "--output", "int8")
    assert (done.code, done.err) == (0, "")
    rows = [f"{word} lamp {i}" for i, word in enumerate(("off", "on") * 4)]
    from llm_arch.inference import Predictor

    one, other = (Predictor(load_model(place))(rows) for place in ("whole", "int8"))
    assert [p.label for p in one] == [p.label for p in other]
    torch.testing.assert_close([p.score for p in one], [p.score for p in other], atol=0.05, rtol=0)


def test_not_where_there_is_a_model(joint: Any) -> None:
    assert joint("--output", "first", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1").code == 0
    done = joint("--output", "second", "--start", "first/teacher", "--trainer.max_epochs", "1")
    assert (done.code, done.err) == (0, "")
    assert "first the teacher" not in done.out
    assert not Path("second/teacher").exists()


def test_mistakes(joint: Any) -> None:
    done = joint("--output", "out", "--trainer.devices", "2")
    assert done.code == 2
    assert "fine_tune_first runs on one device; train the teacher by `llm-arch fit` without the recipe" in done.err
    done = joint("--output", "out", "--trainer.callbacks.times", "often")
    assert done.code == 2
    assert "trainer.callbacks.times" in done.err
    done = joint("--output", "out", fine_tune_first={"trainer.epochs": 1})
    assert done.code == 2
    assert "fine_tune_first has a key 'trainer.epochs', which the config of the run has not" in done.err
    assert not Path("out").exists()
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    done = joint("--output", "out")
    assert done.code == 2
    assert "--output out is not empty" in done.err
    assert not Path("out/teacher").exists()
