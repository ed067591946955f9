"""Steps whose numbers are none change nothing, and are said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from llm_arch.adamw import RowAdamW
from llm_arch.callbacks.guard import Guard
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError


class Poison(L.Callback):
    """Makes some micro-batches' loss or gradient no number."""

    def __init__(self, batches: set[int], how: str = "loss") -> None:
        self.batches, self.how = batches, how
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.states: dict[int, Any] = {}

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        self.weights[batch_idx] = copy.deepcopy(task.state_dict())
        self.states[batch_idx] = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
        task.poison = float("nan") if batch_idx in self.batches and self.how == "loss" else 1.0

    def on_before_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
        if trainer.fit_loop.batch_idx in self.batches and self.how == "gradient":
            next(p for p in task.head.parameters() if p.grad is not None).grad.fill_(float("inf"))


class Poisoned(Task):
    poison = 1.0

    def loss(self, batch: Any) -> Any:
        loss = super().loss(batch)
        return loss._replace(sum=loss.sum * self.poison)


@pytest.fixture
def fit(rows: Any, write_rows: Callable[..., str], tokenizer: str, tmp_path: Path) -> Callable[..., Any]:
    def run(*callbacks: Any, rate: float = 0.01, epochs: int = 1, optimizer: Any = None, **options: Any) -> Any:
        L.seed_everything(1, verbose=False)
        data = TextClassificationData(
            write_rows(rows(32)), tokenizer=tokenizer, batch_size=4, validation_fraction=0.0, cache_dir=str(tmp_path)
        )
        task = Poisoned(
            "tiny:bert",
            partial(SequenceClassification, dropout=0.0),
            LabelSpace(("off", "on")),
            optimizer=optimizer,
            learning_rate=None if optimizer else rate,
        )
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=list(callbacks),
            default_root_dir=str(tmp_path),
            **options,
        )
        trainer.fit(task, datamodule=data)
        return trainer, task

    return run


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer leaves steps out by itself, and nobody asks it until later."""
    monkeypatch.setattr("llm_arch.exact_steps.can_leave_out", lambda optimizer, device: True)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gpu_leaves_a_step_out_and_is_asked_later(how: str, clip: float | None, fit: Callable[..., Any]) -> None:
    """As if its batch had not been there: the same weights, moments and counters."""
    poison = Poison({3}, how)
    with pytest.warns(UserWarning, match=rf"step 4: the {how} is not finite.*lines \d+, \d+, \d+, \d+ of .*rows.jsonl"):
        trainer, task = fit(poison, gradient_clip_val=clip, optimizer=partial(RowAdamW, lr=0.01))
    assert isinstance(task.left_out, torch.Tensor)
    assert same(poison.weights[3], poison.weights[4])
    before, after = poison.states[3], poison.states[4]
    assert all(torch.equal(before[k][name], after[k][name]) for k in before for name in before[k])
    assert not same(poison.weights[4], poison.weights[5])
    assert all(torch.isfinite(p).all() for p in task.parameters())
    (guard,) = (c for c in trainer.callbacks if isinstance(c, Guard))
    assert guard.skipped == guard.state_dict()["skipped"] == 1


@pytest.mark.usefixtures("as_on_a_gpu")
def test_on_a_gpu_it_stops_where_asked_and_is_counted_in_a_checkpoint(fit: Callable[..., Any], tmp_path: Path) -> None:
    options = {"optimizer": partial(RowAdamW, lr=0.01)}
    with pytest.raises(UserError, match="step 1: the loss is not finite.*lower the learning rate"):
        fit(Poison({0}), Guard("stop"), **options)
    with (
        pytest.warns(UserWarning, match="1 of at most 1"),
        pytest.raises(UserError, match=r"This is step 2 of that kind \(max_skips 1\)"),
    ):
        fit(Poison({0, 2}), Guard(max_skips=1), **options)
    path = tmp_path / "middle.ckpt"

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(path)

    with pytest.warns(UserWarning, match="step 2: the loss is not finite"):
        fit(Poison({1}), Save(), **options)
    states = torch.load(path, weights_only=True)["callbacks"]
    assert [state["skipped"] for name, state in states.items() if "Guard" in name] == [1]


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [1.0, None, "value"])
def test_a_step_that_is_no_number_changes_nothing(how: str, clip: Any, fit: Callable[..., Any]) -> None:
    poison = Poison({3}, how)
    options = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"} if clip == "value" else {}
    with pytest.warns(UserWarning, match=rf"step 4: the {how} is not finite.*lines \d+, \d+, \d+, \d+ of .*rows.jsonl"):
        trainer, task = fit(poison, **({"gradient_clip_val": clip} if clip != "value" else options))
    assert same(poison.weights[3], poison.weights[4])
    before, after = poison.states[3], poison.states[4]
    assert all(torch.equal(before[k]["exp_avg"], after[k]["exp_avg"]) for k in before if "exp_avg" in before[k])
    assert not same(poison.weights[4], poison.weights[5])
    assert all(torch.isfinite(p).all() for p in task.parameters())
    (guard,) = (c for c in trainer.callbacks if isinstance(c, Guard))
    assert guard.skipped == 1
    assert guard.state_dict()["skipped"] == 1


def test_of_an_accumulated_step_the_micro_batch_is_named(fit: Callable[..., Any]) -> None:
    poison = Poison({4})
    with pytest.warns(UserWarning, match=r"lines \d+, \d+, \d+, \d+ of"):
        fit(poison, accumulate_grad_batches=2)
    assert same(poison.weights[4], poison.weights[6])


def test_it_stops_where_asked_and_where_it_happens_too_often(fit: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="step 1: the loss is not finite.*lower the learning rate"):
        fit(Poison({0}), Guard("stop"))
    with (
        pytest.warns(UserWarning, match="1 of at most 1"),
        pytest.raises(UserError, match=r"This is step 2 of that kind \(max_skips 1\)"),
    ):
        fit(Poison({0, 2}), Guard(max_skips=1))


def test_a_loss_that_stays_is_said_and_one_that_falls_is_not(fit: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="the loss has not fallen"):
        fit(rate=0.0, epochs=8)
    fit(rate=0.01, epochs=12)


class Pruned(L.Callback):
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.changing = True


def test_the_loss_counts_once_the_model_has_its_shape(fit: Callable[..., Any]) -> None:
    fit(Pruned(), rate=0.0, epochs=8)  # a warning would be an error


@pytest.mark.parametrize(("options", "said"), [({"policy": "hope"}, "policy"), ({"max_skips": -1}, "max_skips")])
def test_mistakes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Guard(**options)
