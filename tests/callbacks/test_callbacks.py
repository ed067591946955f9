"""Checkpoints and early stopping: what they follow, what they keep, and when they stop."""

import csv
import shutil
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.monitor import monitor_of, validates
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace

LABELS = LabelSpace(("off", "on"))


class ByLoss(SequenceClassification):
    """A head whose major metric is better when lower."""

    major = "loss"
    mode = "min"


class Epochs(L.Callback):
    """How many were begun."""

    def __init__(self):
        self.count = 0

    def on_train_epoch_start(self, trainer, pl_module):
        self.count += 1


@pytest.fixture
def fit(rows, write_rows, tokenizer, tmp_path):
    train = write_rows(rows(24))

    def run(*callbacks, head=SequenceClassification, fraction=0.25, rate=0.01, **options):
        torch.manual_seed(0)
        task = Task("tiny:bert", partial(head, dropout=0.0), LABELS, learning_rate=rate, dropout=0.0)
        data = TextClassificationData(train, tokenizer=tokenizer, validation_fraction=fraction, batch_size=6)
        options = {"max_epochs": 3, "enable_progress_bar": False, **options}
        trainer = Trainer(
            accelerator="cpu",
            precision="32-true",
            default_root_dir=str(tmp_path),
            callbacks=[*callbacks],
            **options,
        )
        trainer.fit(task, datamodule=data)
        return trainer

    return run


def logged(folder, name):
    with (folder / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def files(folder):
    """All but the state before the last, which is there from the second time on."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name != "previous.ckpt")


# What is followed


@pytest.mark.parametrize(
    ("monitor", "mode", "followed"),
    [
        (None, None, ("val/quality", "max")),
        (None, "min", ("val/quality", "min")),
        ("val/loss", None, ("val/loss", "min")),
        ("val/perplexity", None, ("val/perplexity", "min")),
        ("val/accuracy", None, ("val/accuracy", "max")),
        ("val/loss", "max", ("val/loss", "max")),
    ],
)
def test_monitor(monitor, mode, followed):
    module = SimpleNamespace(head=SimpleNamespace(major="quality", mode="max"))
    assert monitor_of(module, monitor, mode) == followed


def test_monitor_without_a_head():
    assert monitor_of(SimpleNamespace(), None, None) == ("val/loss", "min")


@pytest.mark.parametrize(
    ("splits", "limit", "expected"),
    [
        ({"train": 1, "validation": 2}, 1.0, True),
        ({"train": 1}, 1.0, False),
        ({"train": 1, "validation": 2}, 0, False),
        (None, 1.0, True),
    ],
)
def test_validates(splits, limit, expected):
    data = None if splits is None else SimpleNamespace(splits=splits)
    assert validates(SimpleNamespace(datamodule=data, limit_val_batches=limit)) is expected


@pytest.mark.parametrize(
    ("head", "monitor", "mode"),
    [(SequenceClassification, "val/accuracy", "max"), (ByLoss, "val/loss", "min")],
)
def test_both_follow_the_head(head, monitor, mode, fit, tmp_path):
    trainer = fit(head=head)
    followers = trainer.checkpoint_callback, trainer.early_stopping_callback
    assert [type(one) for one in followers] == [Checkpoint, EarlyStopping]
    assert [(one.monitor, one.mode) for one in followers] == [(monitor, mode)] * 2
    values = logged(tmp_path, monitor)
    assert len(values) == 3
    best = min(values) if mode == "min" else max(values)
    assert float(followers[0].best_model_score) == pytest.approx(best)
    assert float(followers[1].best_score) == pytest.approx(best)
    # The file of the best state holds the state of the first epoch that was so good: 3 steps an epoch.
    state = torch.load(followers[0].best_model_path, weights_only=True)
    assert state["global_step"] == 3 * (values.index(best) + 1)


def test_own_monitor(fit):
    trainer = fit(Checkpoint("val/macro_f1"), EarlyStopping("val/loss"))
    assert (trainer.checkpoint_callback.monitor, trainer.checkpoint_callback.mode) == ("val/macro_f1", "max")
    assert (trainer.early_stopping_callback.monitor, trainer.early_stopping_callback.mode) == ("val/loss", "min")


def test_unknown_monitor_is_named(fit):
    with pytest.raises(RuntimeError, match=r"`val/nonsense` which is not available.*val/accuracy"):
        fit(EarlyStopping("val/nonsense"), enable_checkpointing=False)


# Checkpoints


def test_last_and_best_are_kept(fit, tmp_path):
    trainer = fit(head=ByLoss)
    losses = logged(tmp_path, "val/loss")
    best = 3 * (losses.index(min(losses)) + 1)
    assert files(tmp_path) == [f"epoch{best // 3 - 1:03d}-step{best:06d}.ckpt", "last.ckpt"]
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == trainer.global_step == 9
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(last["state_dict"][name], value)


def test_last_is_kept_however_bad_it_is(fit, tmp_path):
    """Nothing improves after the first epoch."""
    trainer = fit(rate=0.0, max_epochs=3)
    assert files(tmp_path) == ["epoch000-step000003.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    assert trainer.checkpoint_callback.last_model_path == str(tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(("top", "count"), [(0, 1), (2, 3), (-1, 4)])
def test_as_many_of_the_best_as_asked(top, count, fit, tmp_path):
    fit(Checkpoint("val/loss", save_top_k=top))
    assert len(files(tmp_path)) == count
    assert "last.ckpt" in files(tmp_path)


def test_last_is_kept_within_epochs(fit, tmp_path):
    class Seen(L.Callback):
        steps = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            last = tmp_path / "checkpoints" / "last.ckpt"
            if last.is_file():
                self.steps.append(torch.load(last, weights_only=True)["global_step"])

    fit(Seen(), max_epochs=2, val_check_interval=2)
    assert Seen.steps == [2, 3, 3, 5]  # at the starts of steps 3 to 6


def test_a_run_that_dies_while_writing_keeps_the_checkpoint_before(fit, tmp_path, monkeypatch):
    save = L.Trainer.save_checkpoint

    def dying(self, path, *args, **kwargs):
        if self.global_step == 6 and "epoch" not in str(path):
            shutil.copy(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "before.ckpt")
            with open(path, "wb") as file:
                file.write(b"half of")
            raise OSError("no space left on device")
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", dying)
    with pytest.raises(OSError, match="no space left"):
        fit()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.read_bytes() == (tmp_path / "before.ckpt").read_bytes()
    assert torch.load(last, weights_only=True)["global_step"] == 3


# Early stopping


def test_stops_when_nothing_improves(fit, tmp_path):
    epochs = Epochs()
    trainer = fit(epochs, EarlyStopping(patience=2), rate=0.0, max_epochs=9)
    assert epochs.count == 3  # the first is the best, two more bring nothing
    assert trainer.early_stopping_callback.stopped_epoch == 2
    assert trainer.should_stop
    assert trainer.global_step == 9
    assert len(logged(tmp_path, "val/accuracy")) == 3


def test_default_patience(fit):
    epochs = Epochs()
    fit(epochs, rate=0.0, max_epochs=9)
    assert epochs.count == 4


class Clock(L.Callback):
    """Logs a value that rises by 1 with every epoch."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/clock", float(trainer.current_epoch))


@pytest.mark.parametrize(("mode", "ran"), [(None, 4), ("max", 4), ("min", 2)])
def test_goes_on_while_it_improves(mode, ran, fit):
    epochs = Epochs()
    fit(epochs, Clock(), EarlyStopping("val/clock", mode, patience=1), max_epochs=4)
    assert epochs.count == ran


@pytest.mark.parametrize(("min_delta", "ran"), [(0.5, 4), (1.5, 2)])
def test_small_changes_are_no_improvement(min_delta, ran, fit):
    epochs = Epochs()
    fit(epochs, Clock(), EarlyStopping("val/clock", patience=1, min_delta=min_delta), max_epochs=4)
    assert epochs.count == ran


# Without validation


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"limit_val_batches": 0}], ids=["no rows", "switched off"])
def test_without_validation_all_epochs_run_and_the_last_is_kept(options, fit, tmp_path):
    epochs = Epochs()
    trainer = fit(epochs, rate=0.0, max_epochs=6, **options)
    assert epochs.count == 6
    assert files(tmp_path) == ["last.ckpt"]
    assert trainer.checkpoint_callback.best_model_path == ""
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == trainer.global_step


def test_without_validation_there_is_a_checkpoint_after_the_first_epoch(fit, tmp_path):
    class Dies(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(Dies(), fraction=0.0)
    assert files(tmp_path) == ["last.ckpt"]


def test_measuring_alone_writes_nothing(rows, write_rows, tokenizer, tmp_path):
    path = write_rows(rows(8))
    data = TextClassificationData(path, path, path, tokenizer=tokenizer)
    task = Task("tiny:bert", SequenceClassification, LABELS)
    options = {"logger": False, "enable_progress_bar": False, "default_root_dir": str(tmp_path / "out")}
    trainer = Trainer(accelerator="cpu", **options)
    assert trainer.checkpoint_callback is not None
    trainer.validate(task, datamodule=data, verbose=False)
    assert trainer.state.fn == TrainerFn.VALIDATING
    trainer.test(task, datamodule=data, verbose=False)
    assert not list((tmp_path / "out").rglob("*.ckpt"))
