"""A few steps of real training, straight or interrupted, for checks that compare how runs end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from torch import Tensor

from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.guard import Guard
from llm_arch.callbacks.preemption import Preemption
from llm_arch.callbacks.throughput import Throughput
from llm_arch.data.module import DataModule
from llm_arch.evaluation.verification.base import Outcome
from llm_arch.evaluation.verification.subject import Subject, part_of
from llm_arch.task import Task
from llm_arch.trainer import Trainer

EPOCHS = 2
BATCH = 4  # rows a micro-batch
STOP = 2  # the step after which an interrupted run is interrupted
# These report, or decide by validations, of which there are none here; or the trainer has them without being told.
_REPORT = (ProgressBar, LearningRateMonitor, Throughput)
_LEFT_OUT = (*_REPORT, LightningCheckpoint, LightningEarlyStopping, Guard, Preemption)

State = dict[str, Any]


class Difference(NamedTuple):
    """How far two states are apart.

    Attributes:
        differing: values that are not the same, bit for bit.
        first: the name of the first of them.
        largest: the largest difference.
    """

    differing: int
    first: str
    largest: float


class _Interrupted(Exception):
    """The run went away."""


class _SaveAndStop(Callback):
    """Saves as soon as a step has ended, and takes the run away."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise _Interrupted


def straight(subject: Subject) -> State:
    """How a run ends that nobody disturbs; trained once for all checks."""
    if "straight" not in subject.kept:
        subject.kept["straight"] = _trained(subject, subject.task(), subject.data)
    state: State = subject.kept["straight"]
    return state


def repeated(subject: Subject) -> State:
    """How it ends when everything is built and done once more."""
    task, data = subject.built()
    return _trained(subject, subject.ready(task, data), data)


def interrupted(subject: Subject) -> State:
    """How it ends when it is interrupted, and resumed from its checkpoint by a model and a trainer made anew."""
    path = subject.folder / "interrupted.ckpt"
    with suppress(_Interrupted):
        _trained(subject, subject.task(), subject.data, [_SaveAndStop(STOP, path)])
    return _trained(subject, subject.task(), subject.data, checkpoint=str(path))


def fit(
    subject: Subject,
    task: Task,
    data: DataModule,
    callbacks: Sequence[Callback],
    checkpoint: str | None,
    **options: Any,
) -> Trainer:
    """Train on some rows of the user's, by the settings of their run."""
    own = [copy.deepcopy(one) for one in subject.callbacks if not isinstance(one, _LEFT_OUT)]
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "max_epochs": EPOCHS,
            "gradient_clip_val": subject.clip,
            "logger": None if own else False,  # theirs may want one
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(subject.folder),
            "callbacks": [*own, EarlyStopping(), *callbacks],
            **options,
        }
    )
    L.seed_everything(subject.seed, verbose=False)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def _trained(
    subject: Subject, task: Task, data: DataModule, callbacks: Sequence[Callback] = (), checkpoint: str | None = None
) -> State:
    rows = subject.rows()
    small = part_of(data, rows, batch_size=BATCH, max_tokens=None)
    accumulation = min(subject.accumulation, 2, len(rows))
    trainer = fit(subject, task, small, callbacks, checkpoint, accumulate_grad_batches=accumulation)
    states = {"weights": task.state_dict(), "optimizer": [one.state_dict() for one in trainer.optimizers]}
    return dict(_flat(copy.deepcopy(states), ""))


def difference(one: State, other: State) -> Difference:
    """What is not the same in two states."""
    count, first, largest = 0, "", 0.0
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if _same(a, b):
            continue
        count += 1
        first = first or name
        numbers = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
        apart = float((a.double() - b.double()).abs().max()) if numbers else float("inf")  # type: ignore[union-attr]
        largest = max(largest, apart) if apart == apart else float("inf")
    return Difference(count, first, largest)


def compared(one: State, other: State, what: str) -> Outcome:
    """Whether two runs ended the same."""
    count, first, largest = difference(one, other)
    reason = f"{what}: {count} of {len(one)} weights and states differ"
    if count:
        reason += f", by up to {largest:.1e}; the first is {first}"
    return Outcome("fail" if count else "pass", float(count), "= 0", reason)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # NaN equals NaN here: a bad number is another check's business.
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    return bool(one == other) if type(one) is type(other) else False


def _flat(values: Any, prefix: str) -> Any:
    """All values of nested ones, each with its name."""
    if isinstance(values, dict | list | tuple):
        named = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in named:
            yield from _flat(value, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, values
