"""Training for int8 in runs: from when on, across interruptions, beside other compression, and in what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from llm_arch.backbones.adapters import Adapted
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.quantization import QuantizationAwareTraining
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.callbacks.unstructured_pruning import UnstructuredPruning
from llm_arch.compression.quantization import fake_quantized
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.sample import sample
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.directory import load, save
from llm_arch.losses.distillation import Distillation, Itself
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

STEPS = 8  # an epoch


class Killed(Exception):
    """The process went away."""


class Follow(L.Callback):
    """Whether each step and each validation rounded, and whether the model was still changing then."""

    def __init__(self, save_at: int = -1, path: str = "") -> None:
        self.save_at, self.path = save_at, path
        self.steps: dict[int, bool] = {}
        self.validations: list[tuple[int, bool, bool]] = []

    def on_before_zero_grad(self, trainer: Any, task: Any, optimizer: Any) -> None:
        self.steps[trainer.global_step] = rounds(task)

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.path)
            raise Killed

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        if not trainer.sanity_checking:
            self.validations.append((trainer.global_step, rounds(task), bool(task.changing)))


def rounds(task: Task) -> bool:
    return any("forward" in vars(module) for module in task.modules())


class Run:
    """One process: everything is built anew, as after a restart."""

    def __init__(self, made: Any, root: Path, *callbacks: Any, save_at: int = -1, **options: Any) -> None:
        L.seed_everything(2, verbose=False)
        head = partial(SequenceClassification, dropout=0.1)
        backbone, terms = options.pop("backbone", "tiny:bert"), options.pop("loss_terms", ())
        labels = LabelSpace(("off", "on"))
        self.task = Task(backbone, head, labels, dropout=0.1, learning_rate=0.005, loss_terms=terms)
        self.data = made(**options.pop("data", {}))
        self.followed = Follow(save_at, str(root / f"{save_at}.ckpt"))
        options = {"enable_checkpointing": False, "max_epochs": 1, "precision": "32-true", **options}
        self.trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=[*callbacks, self.followed],
            default_root_dir=str(root),
            **options,
        )

    def fit(self, checkpoint: str | None = None) -> Run:
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return self


@pytest.fixture
def run(rows: Any, write_rows: Callable[..., str], tokenizer: str, tmp_path: Path) -> Callable[..., Run]:
    path, more = write_rows(rows(32)), write_rows(rows(12, seed=1), "more.jsonl")

    def data(**options: Any) -> TextClassificationData:
        return TextClassificationData(path, more, **{"tokenizer": tokenizer, "batch_size": 4, **options})

    return lambda *callbacks, **options: Run(data, tmp_path, *callbacks, **options)


# When


def test_when_it_begins() -> None:
    for start, steps, expected in ((0.0, 8, 0), (0.5, 8, 4), (0.99, 8, 7), (0.5, 1, 0), (0.5, 0, 0)):
        assert QuantizationAwareTraining(start=start).first_step(steps) == expected


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_training_and_validation_round_from_the_start_on(
    run: Callable[..., Run], start: float, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(QuantizationAwareTraining(start=start), val_check_interval=2).fit()
    first = round(start * STEPS)
    assert done.followed.steps == {step: step >= first for step in range(STEPS)}
    # What was measured before the step at which rounding begins can't be the best.
    assert done.followed.validations == [(step, step > first, step <= first) for step in (2, 4, 6, 8)]
    assert not rounds(done.task)
    assert f"linear layers and 3 embeddings were trained for int8 for {STEPS - first} steps" in capsys.readouterr().out


def test_what_is_validated_is_the_model_in_int8(run: Callable[..., Run]) -> None:
    done = run(QuantizationAwareTraining()).fit()
    validated = float(done.trainer.callback_metrics["val/loss"])
    after = done.trainer.validate(done.task, datamodule=done.data, verbose=False)[0]["val/loss"]
    plain = run().trainer
    exact = plain.validate(done.task, datamodule=done.data, verbose=False)[0]["val/loss"]
    assert validated == pytest.approx(after, abs=1e-7)
    assert abs(exact - after) > 1e-6
    with fake_quantized(done.task.backbone, done.task.head):
        assert plain.validate(done.task, datamodule=done.data, verbose=False)[0]["val/loss"] == after


def test_it_is_measured_before_without_rounding(run: Callable[..., Run]) -> None:
    begun = run(QuantizationAwareTraining())
    before = begun.trainer.validate(begun.task, datamodule=begun.data, verbose=False)[0]
    assert before == run().trainer.validate(begun.task, datamodule=begun.data, verbose=False)[0]


def test_a_run_without_steps_measures_what_int_8_does(run: Callable[..., Run]) -> None:
    begun = run(QuantizationAwareTraining(start=0.5), max_epochs=0)
    state = {key: value.clone() for key, value in begun.task.state_dict().items()}
    done = begun.fit()
    assert all(torch.equal(value, state[key]) for key, value in done.task.state_dict().items())
    assert done.task.records["quantization"]["steps"] == 0
    with fake_quantized(done.task.backbone, done.task.head):
        expected = run().trainer.validate(done.task, datamodule=done.data, verbose=False)[0]
    assert done.trainer.validate(done.task, datamodule=done.data, verbose=False)[0] == expected


@pytest.mark.parametrize("other_first", [True, False])
def test_other_callbacks_that_change_the_model_are_waited_for(run: Callable[..., Run], other_first: bool) -> None:
    pruning = UnstructuredPruning(sparsity=0.5, start=0.0, end=0.25, every=1)
    for start, changing in ((0.5, 4), (0.0, 0)):
        both = [pruning, QuantizationAwareTraining(start=start)]
        done = run(*(both if other_first else both[::-1]), val_check_interval=1).fit()
        assert [step for step, _, more in done.followed.validations if more] == list(range(1, max(changing, 1) + 1))


# Training


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_an_interrupted_run_ends_as_the_straight_one(run: Callable[..., Run], start: float, tmp_path: Path) -> None:
    straight = run(QuantizationAwareTraining(start=start)).fit()
    for step in (3, 4) if start else (3,):
        with pytest.raises(Killed):
            run(QuantizationAwareTraining(start=start), save_at=step).fit()
        resumed = run(QuantizationAwareTraining(start=start)).fit(str(tmp_path / f"{step}.ckpt"))
        found = resumed.task.state_dict()
        assert [key for key, value in straight.task.state_dict().items() if not torch.equal(found[key], value)] == []
        assert min(resumed.followed.steps) == step
        assert resumed.task.records == straight.task.records


def test_weights_learn_as_without(run: Callable[..., Run]) -> None:
    """All parameters move, embeddings by sparse gradients too, and the loss falls."""
    begun = run(QuantizationAwareTraining(), max_epochs=6, precision="bf16-mixed")
    before = {key: value.clone() for key, value in begun.task.named_parameters()}
    done = begun.fit()
    still = [key for key, value in done.task.named_parameters() if torch.equal(value, before[key])]
    assert [key for key in still if "pooler" not in key] == []
    assert float(done.trainer.callback_metrics["val/loss"]) < 0.6


def test_beside_structured_pruning_and_distillation(run: Callable[..., Run], tmp_path: Path) -> None:
    teacher = Distillation()
    pruning = StructuredPruning(neurons=0.5, heads=0.5, start=0.25, end=0.5, times=2, rows=8)
    options = {"loss_terms": [teacher], "val_check_interval": 2}
    done = run(pruning, QuantizationAwareTraining(), **options).fit()
    assert all(done.followed.steps.values())
    assert isinstance(teacher.teacher, Itself)
    parts = (teacher.teacher.backbone, teacher.teacher.head)
    assert not any("forward" in vars(module) for part in parts for module in part.modules())
    assert done.task.records.keys() >= {"pruning", "quantization"}
    model = load(save(done.task, done.data, tmp_path / "model"))
    batch = sample(done.data, 8)[0]
    done.task.eval()
    with torch.no_grad(), fake_quantized(done.task.backbone, done.task.head):
        expected = done.task.head(done.task.backbone(batch), batch)
    with torch.no_grad(), fake_quantized(model.backbone, model.head):
        assert torch.equal(model.head(model.backbone(batch), batch), expected)


# What comes of it


def test_it_is_saved_in_fp32_and_quantized_once(run: Callable[..., Run], tmp_path: Path) -> None:
    done = run(QuantizationAwareTraining()).fit()
    model = load(save(done.task, done.data, tmp_path / "model"))
    state = done.task.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
    record = model.record["records"]["quantization"]
    assert (record["target"], record["steps"]) == ("onnxruntime", STEPS)
    json.dumps(record)
    with pytest.raises(UserError, match="model was trained for int8 already, for 8 steps; quantize the model that it"):
        run(QuantizationAwareTraining(), backbone=str(tmp_path / "model")).fit()


def test_the_best_state_is_one_that_rounds(run: Callable[..., Run]) -> None:
    best = Checkpoint(monitor="val/loss", mode="max")  # the first would win
    callbacks = (QuantizationAwareTraining(start=0.5), best)
    run(*callbacks, enable_checkpointing=True, val_check_interval=2).fit()
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] > 4


def test_a_run_that_ends_too_early_says_so(run: Callable[..., Run]) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 3

    with pytest.warns(UserWarning, match="ended after step 3, and training for int8 was to begin at step 4"):
        done = run(QuantizationAwareTraining(start=0.5), Stop()).fit()
    assert "quantization" not in done.task.records


def test_mistakes(run: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"start must be in \[0, 1\), got 1"):
        QuantizationAwareTraining(start=1)
    with pytest.raises(UserError, match="target must be onnxruntime, got 'tensorrt'"):
        QuantizationAwareTraining("tensorrt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="adapters are added to the weights in the end"):
        run(QuantizationAwareTraining(), backbone=Adapted("tiny:bert")).fit()
