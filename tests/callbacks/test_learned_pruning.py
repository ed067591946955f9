"""Gates that are learnt: by the gradients of what a step counts, exactly again after an interruption, to a target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.guard import Guard
from llm_arch.callbacks.learned_pruning import _NOISE, LearnedPruning
from llm_arch.compression.gates import Gates
from llm_arch.compression.l0 import LearnedGates
from llm_arch.compression.macs import macs_per_token
from llm_arch.compression.prices import Prices
from llm_arch.compression.structure import Structure
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.sample import sample
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference import load, save
from llm_arch.seeding import mix
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

STEPS = 10
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 30522,
    "max_position_embeddings": 128,
}


class Keep(L.Callback):
    """Saves at the end of these steps, and notes the gates after each, or None where none learn."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.gates: list[dict[str, Tensor] | None] = []
        self.batches: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches:
            return
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")
        pruning = _pruning(trainer)
        learned = None if pruning is None else pruning.learned
        self.gates.append(None if learned is None else {k: v.detach().clone() for k, v in learned.named_parameters()})


def _pruning(trainer: Any) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, LearnedPruning)), None)


class Run:
    """One process: everything is built anew, as after a restart."""

    def __init__(
        self,
        folder: Path,
        files: tuple[str, str],
        tokenizer: Any,
        *callbacks: L.Callback,
        backbone: Any = None,
        task: dict[str, Any] | None = None,
        gated: bool = False,
        **options: Any,
    ) -> None:
        L.seed_everything(11, verbose=False)
        backbone = Pretrained(config=CONFIG) if backbone is None else backbone
        head = partial(SequenceClassification, dropout=0.3)
        options = {"max_steps": STEPS, "accumulate_grad_batches": 2, "limit_val_batches": 0, **options}
        self.task = Task(
            backbone, head, LabelSpace(("off", "on")), **({"learning_rate": 0.01, "dropout": 0.1} | (task or {}))
        )
        if gated:  # as several ranks are
            self.task.backbone.gates = Gates(self.task.backbone.model)  # type: ignore[arg-type]
            self.task.backbone.gates.attach(self.task.backbone.model)  # type: ignore[union-attr, operator]
        self.data = TextClassificationData(*files, tokenizer=tokenizer, batch_size=3)
        if not any(isinstance(c, Checkpoint) for c in callbacks):
            options["enable_checkpointing"] = False
        self.keep = next((c for c in callbacks if isinstance(c, Keep)), Keep(folder))
        self.trainer = Trainer(
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            default_root_dir=str(folder),
            callbacks=[EarlyStopping(patience=1000), *callbacks, *([] if self.keep in callbacks else [self.keep])],
            **options,
        )

    def fit(self, checkpoint: Path | None = None) -> Run:
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return self

    @property
    def structure(self) -> Structure:
        return self.task.backbone.structure  # type: ignore[return-value]


@pytest.fixture
def files(rows: Any, write_rows: Any) -> tuple[str, str]:
    return write_rows(rows(28), "train.jsonl"), write_rows(rows(8, seed=1), "validation.jsonl")


@pytest.fixture
def run(files: tuple[str, str], tokenizer: Any, tmp_path: Path) -> Callable[..., Run]:
    return lambda *callbacks, **options: Run(tmp_path / "run", files, tokenizer, *callbacks, **options)


def learning(target: str = "2x macs", **arguments: Any) -> LearnedPruning:
    return LearnedPruning(target, **({"rows": 3, "multiple": 1, "start": 0.2, "end": 0.7} | arguments))


def numbers(values: Any, prefix: str = "") -> dict[str, Any]:
    """All numbers of nested values, by name."""
    if isinstance(values, dict):
        return {k: v for key, value in values.items() for k, v in numbers(value, f"{prefix}.{key}").items()}
    if isinstance(values, list | tuple):
        return numbers(dict(enumerate(values)), prefix)
    return {prefix: values}


def assert_equal(found: Any, expected: Any) -> None:
    found, expected = numbers(found), numbers(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value, name


# When


@pytest.mark.parametrize(("start", "end", "warmup"), [(0.0, 1.0, 0.5), (0.2, 0.7, 0.0), (0.1, 0.5, 1.0)])
def test_steps_in_closed_form(start: float, end: float, warmup: float) -> None:
    callback = LearnedPruning("2x macs", start=start, end=end, warmup=warmup)
    callback._steps, callback.size = 100, 0.4
    first, last = callback.steps_of(100)
    assert (first, last) == (round(start * 100), min(round(end * 100), 99))
    assert callback.steps_of(2)[1] <= 1
    falling = round(warmup * (last - first))
    for step in range(first, last):
        share = min(1.0, (step - first + 1) / falling) if falling else 1.0
        assert callback.size_at(step) == pytest.approx(1 - 0.6 * share)
    assert callback.size_at(last - 1) == pytest.approx(0.4)


def test_gates_learn_between_two_steps(run: Callable[..., Run]) -> None:
    found = run(learning()).fit()
    assert [gates is not None for gates in found.keep.gates] == [2 <= step < 7 for step in range(STEPS)]
    assert not hasattr(found.task.backbone, "gates")
    assert not found.task.changing
    record = found.task.records["pruning"]
    assert record["target"] == "2x macs"
    assert record["importance"] == "learned"
    assert record["after"]["heads"] == list(found.structure.sizes.heads)
    assert 0 < record["expected_size"] < 1


# What


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gates_follow_the_mean_loss_and_the_penalty(accumulate: int, run: Callable[..., Run]) -> None:
    """One step of AdamW by derivatives that are written out."""
    task = {"dropout": 0.0, "learning_rate": 1e-30}
    options = {"max_steps": 3, "accumulate_grad_batches": accumulate}
    pruning = learning(start=0.0, end=1.0, warmup=1.0)  # gates learn in two steps
    found = run(pruning, task=task, **options)
    found.task.head.dropout.p = 0.0  # type: ignore[union-attr]
    found.fit()
    (after, *_) = found.keep.gates
    plain = run(learning(), task=task, **options)
    plain.task.head.dropout.p = 0.0  # type: ignore[union-attr]
    backbone: Any = plain.task.backbone
    assert pruning._prices is not None
    learned = LearnedGates([4] * 3, [32] * 3, pruning._prices)
    backbone.gates = gates = Gates(backbone.model)
    gates.attach(backbone.model)
    total, counted = torch.zeros(()), 0.0
    for micro_batch, batch in enumerate(found.keep.batches[:accumulate]):
        torch.manual_seed(mix(11, 0, micro_batch, _NOISE))
        heads, neurons, layers = learned.values()
        gates.set_values(heads=heads, neurons=neurons, layers=layers)
        loss = plain.task.loss(batch)
        total, counted = total + loss.sum, counted + float(loss.denominator)
    (total / counted + learned.penalty(0.75)).backward()
    for name, parameter in learned.named_parameters():
        assert parameter.grad is not None
        # The first step of Adam; multipliers go up, and their gradient is turned round already.
        step = -0.5 * parameter.grad if name == "multipliers" else -0.1 * parameter.grad / (parameter.grad.abs() + 1e-8)
        parameter.data += step
    assert after is not None
    for name, value in learned.named_parameters():
        assert torch.allclose(after[name], value, atol=1e-5), name


def test_a_loss_scale_is_taken_out() -> None:
    """GradScaler knows of the task's optimizer only."""
    moments = []
    for scale in (None, 1024.0):
        scaler = None if scale is None else SimpleNamespace(get_scale=lambda: 1024.0)
        trainer: Any = SimpleNamespace(
            precision_plugin=SimpleNamespace(scaler=scaler),
            strategy=SimpleNamespace(reduce=lambda gradient, reduce_op: gradient),
            global_step=0,
        )
        task = SimpleNamespace(device="cpu", gradient_factor=0.5, left_out=False)
        pruning = learning()
        pruning.learned = LearnedGates([2], [3], Prices(np.arange(3.0), np.arange(4.0), 0.0, 0.0))
        pruning._optimize(task)
        for number, parameter in enumerate(pruning.learned.parameters()):
            parameter.grad = torch.full_like(parameter, (scale or 1.0) * (number - 1))
        pruning._step_ended(trainer, task)
        assert all(parameter.grad is None for parameter in pruning.learned.parameters())
        assert pruning._optimizer is not None
        moments.append(pruning._optimizer.state_dict()["state"])
    assert_equal(moments[1], moments[0])


def test_the_target_is_met(run: Callable[..., Run]) -> None:
    dense = run().task.backbone.model
    pruning = learning("3x macs", rows=28, end=0.9, learning_rate=0.5)
    found = run(pruning, max_steps=40, accumulate_grad_batches=1).fit()
    lengths = torch.cat([batch.lengths for batch in sample(found.data, 28)]).double()
    length = float((lengths**2).sum() / lengths.sum())
    times = macs_per_token(dense, length) / macs_per_token(found.task.backbone.model, length)  # type: ignore[arg-type]
    assert 3 <= times < 3.2
    promised = found.task.records["pruning"]["promised"]
    assert promised == {"unit": "macs", "times": pytest.approx(times, rel=1e-3)}
    # Gates themselves have come near, too.
    assert found.task.records["pruning"]["expected_size"] == pytest.approx(1 / 3, abs=0.1)


def test_taken_out_is_as_gated(run: Callable[..., Run]) -> None:
    """Without dropout, whose numbers go by sizes."""
    found = [run(learning(), task={"dropout": 0.0}, gated=gated).fit() for gated in (False, True)]
    assert hasattr(found[1].task.backbone, "gates")
    found[1].task.backbone.settle()
    assert found[0].structure == found[1].structure
    assert found[0].structure.is_whole is False
    one, other = (r.task.state_dict() for r in found)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("kind", ["gpt2", "modernbert", "llama"])
def test_saved_and_loaded(kind: str, run: Callable[..., Run], tmp_path: Path) -> None:
    found = run(learning(), backbone=Pretrained(f"tiny:{kind}"), max_steps=3).fit()
    batch = next(iter(found.data.val_dataloader()))
    save(found.task, found.data, tmp_path / "model")
    loaded = load(tmp_path / "model", check=True)
    assert loaded.backbone.structure == found.structure
    assert found.structure.is_whole is False
    with torch.no_grad():
        assert loaded.head(loaded.backbone(batch), batch).equal(found.task.eval()(batch))


class Poison(L.Callback):
    """One step has a loss that is no number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        weight = pl_module.head.classify.weight
        if trainer.global_step == self.step:
            self.weight = weight.detach().clone()
            weight.data.fill_(float("nan"))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step + 1:
            pl_module.head.classify.weight.data.copy_(self.weight)


@pytest.mark.filterwarnings("ignore:step 5.*the loss is not finite")
def test_a_step_that_is_left_out_leaves_gates_alone(run: Callable[..., Run]) -> None:
    found = run(learning(), Guard(), Poison(4), accumulate_grad_batches=1).fit()
    gates = found.keep.gates
    assert_equal(gates[4], gates[3])
    assert not gates[5]["layers.log_alpha"].equal(gates[4]["layers.log_alpha"])  # type: ignore[index]
    assert found.structure.is_whole is False


# Interrupted


@pytest.mark.parametrize("gated", [False, True])
def test_interrupted_anywhere(gated: bool, run: Callable[..., Run], tmp_path: Path) -> None:
    """Before, while and after gates learn; validations draw random numbers in between."""
    options = {"limit_val_batches": 1.0, "val_check_interval": 2, "gated": gated}
    straight = run(learning(), Keep(tmp_path, *range(1, STEPS)), **options).fit()
    for step in (1, 2, 6, 7) if not gated else (1, 4, 8):
        resumed = run(learning(), Keep(tmp_path / "again"), **options).fit(tmp_path / f"{step}.ckpt")
        assert_equal(resumed.keep.gates, straight.keep.gates[step:])
        assert_equal(resumed.task.state_dict(), straight.task.state_dict())
        assert_equal(resumed.trainer.optimizers[0].state_dict(), straight.trainer.optimizers[0].state_dict())
        assert resumed.structure == straight.structure
        assert resumed.task.records == straight.task.records
    if gated:  # one process goes on where several stopped
        alone = run(learning(), **options | {"gated": False}).fit(tmp_path / "4.ckpt")
        assert_equal(alone.keep.gates[:3], straight.keep.gates[4:7])
        straight.task.backbone.settle()
        assert alone.structure == straight.structure


class Looks(L.Callback):
    """Looks at the gates that validations run with, and whether any are left between steps."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pruning = _pruning(trainer)
        if pruning.learned is not None:
            self.seen.append((pl_module.backbone.gates.values("layers"), pruning.learned.layers.fixed()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if hasattr(pl_module.backbone, "gates"):
            assert bool((pl_module.backbone.gates.values("layers") == 1).all())


def test_validations_see_gates_without_chance(run: Callable[..., Run]) -> None:
    looks = Looks()
    run(learning(), looks, limit_val_batches=1.0, val_check_interval=2).fit()
    assert looks.seen
    assert all(found.equal(fixed) for found, fixed in looks.seen)


def test_the_best_state_is_never_one_from_before_parts_went(run: Callable[..., Run]) -> None:
    best = Checkpoint()
    found = run(learning(), best, limit_val_batches=1.0, val_check_interval=2, max_steps=-1, max_epochs=3).fit()
    state = torch.load(best.best_model_path, weights_only=True)
    assert state["global_step"] > _pruning(found.trainer).steps_of(found.trainer.global_step)[1]
    found.task.load_state_dict(state["state_dict"])


# Refused


def test_backbones_that_can_not_be_pruned() -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(strategy_name="single_device"), world_size=1)
    for backbone, message in (
        (TextCNN(vocabulary_size=9), "TextCNN can't be pruned in structure"),
        (Pretrained("tiny:distilbert"), "distilbert: its layers are of no kind that can be pruned"),
    ):
        with pytest.raises(UserError, match=message):
            learning().setup(trainer, SimpleNamespace(backbone=backbone), "fit")
    trainer.strategy.strategy_name = "fsdp"
    with pytest.raises(UserError, match="needs whole weights"):
        learning().setup(trainer, SimpleNamespace(backbone=Pretrained("tiny:bert")), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": None}, "needs a target such as 4x or '2x macs', or target_ms"),
        ({"target_ms": 1.0}, "give target or target_ms, not both"),
        ({"start": 0.5, "end": 0.5}, "start before end, got 0.5 and 0.5"),
        ({"end": 1.5}, "got 0.1 and 1.5"),
        ({"warmup": -0.1}, r"warmup must be in \[0, 1\], got -0.1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"open": 1.0}, r"open must be in \(0, 1\), got 1.0"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"multiple": 0}, "multiple must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LearnedPruning(**({"target": "2x macs"} | arguments))


def test_a_target_beyond_reach_is_told_at_once(run: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"a model at 0.001 of its cost can't be reached: one layer with a head"):
        run(learning("1000x macs", start=0.0)).fit()


def test_a_run_without_steps_to_learn_in(run: Callable[..., Run]) -> None:
    for options in ({"max_epochs": 0, "max_steps": -1}, {"max_steps": 1}):
        with pytest.raises(UserError, match="no step to learn in: the run has [01], .* -c compress/retraining_free"):
            run(learning(), **options).fit()


def test_goes_on_from_a_run_without_pruning(run: Callable[..., Run], tmp_path: Path) -> None:
    """As long as there are steps left to learn in."""
    path = tmp_path / "plain.ckpt"
    plain = run(max_steps=4).fit()
    plain.trainer.save_checkpoint(path)
    found = run(learning()).fit(path)
    assert [gates is not None for gates in found.keep.gates] == [True] * 3 + [False] * 3
    with pytest.raises(UserError, match="goes on at step 4 without learnt gates, .* from step 1 to 3; set a later end"):
        run(learning(start=0.1, end=0.3)).fit(path)


class End(L.Callback):
    """Ends the run."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 4


def test_a_run_that_is_over_before_leaves_the_model_whole(run: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ended after step 4, before the learnt gates took parts out at step 7"):
        found = run(learning(), End(), min_epochs=0, accumulate_grad_batches=1).fit()
    assert found.task.changing
    save(found.task, found.data, tmp_path / "model")
    assert load(tmp_path / "model").backbone.structure is None
