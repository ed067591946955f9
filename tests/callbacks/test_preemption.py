"""A run that is told to go saves at the end of its step; the resumed one ends where the undisturbed one does."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.preemption import Preempted, Preemption
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError


class Tell(L.Callback):
    """Sends this process a signal in the middle of something."""

    def __init__(self, hook: str, count: int, number: int = signal.SIGTERM) -> None:
        def tell(trainer: Any, *_: Any, **__: Any) -> None:
            if not trainer.sanity_checking:
                self.seen += 1
                if self.seen == count:
                    os.kill(os.getpid(), number)

        self.seen = 0
        setattr(self, hook, tell)


class Scores(L.Callback):
    def __init__(self) -> None:
        self.found: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        if not trainer.sanity_checking:
            self.found.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


@pytest.fixture
def run(rows: Any, write_rows: Callable[..., str], tokenizer: str, tmp_path: Path) -> Callable[..., Any]:
    file = write_rows(rows(28))

    def make(folder: str, *callbacks: Any, resume: bool = False, **options: Any) -> Any:
        L.seed_everything(3, verbose=False)
        data = TextClassificationData(
            file, tokenizer=tokenizer, batch_size=3, validation_fraction=0.3, evaluation_tokens=20,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        task = Task("tiny:bert", partial(SequenceClassification, dropout=0.2), LabelSpace(("off", "on")))
        scores = Scores()
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_progress_bar=False,
            callbacks=[*callbacks, scores],
            default_root_dir=str(tmp_path / folder),
            **options,
        )
        last = tmp_path / folder / "checkpoints" / "last.ckpt"
        try:
            trainer.fit(task, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
        except Preempted as told:
            return trainer, task, scores, told
        return trainer, task, scores, None

    return make


HOOKS = (
    *("on_train_batch_start", "on_before_optimizer_step", "on_train_epoch_end"),
    *("on_validation_batch_start", "on_validation_batch_end"),
)
RUNS: dict[str, Any] = {}


@pytest.fixture
def straight(run: Callable[..., Any]) -> Callable[..., Any]:
    """The undisturbed run of some options, once for all tests: its weights, scores, and how often each hook came."""

    def get(**options: Any) -> Any:
        if str(options) not in RUNS:
            seen = {hook: Tell(hook, 0) for hook in HOOKS}
            _, task, scores, _ = run("straight", *seen.values(), **options)
            RUNS[str(options)] = task.state_dict(), scores.found, {hook: tell.seen for hook, tell in seen.items()}
        return RUNS[str(options)]

    return get


@pytest.mark.parametrize(
    ("hook", "count", "accumulation"),
    [
        ("on_train_batch_start", 2, 2),  # within a step
        ("on_train_batch_start", 7, 1),  # the last of an epoch, where a validation is due
        ("on_train_batch_start", 14, 1),  # the last of all
        ("on_train_batch_start", 14, 2),
        ("on_before_optimizer_step", 9, 1),
        ("on_before_optimizer_step", 4, 2),
        ("on_validation_batch_start", 2, 1),
        ("on_validation_batch_end", 1, 2),
        ("on_validation_batch_end", -1, 1),  # the last of all
    ],
)
def test_told_anywhere_nothing_is_lost(
    hook: str, count: int, accumulation: int, run: Callable[..., Any], straight: Callable[..., Any]
) -> None:
    options = {"accumulate_grad_batches": accumulation}
    weights, expected, seen = straight(**options)
    count = seen[hook] if count < 0 else count if hook != "on_train_batch_start" else min(count, seen[hook])
    trainer, _, first, told = run("told", Tell(hook, count), **options)
    assert told is not None
    assert told.name == "SIGTERM"
    assert Path(told.path).is_file()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    saved = torch.load(told.path, weights_only=True)
    assert saved["global_step"] == trainer.global_step
    _, resumed, second, _ = run("told", resume=True, **options)
    for name, value in weights.items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # Every validation was done once, with the same numbers.
    assert first.found + second.found == expected


def test_sigusr1_too_and_a_job_is_queued_again(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    fake = bin_ / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    *_, told = run("told", Tell("on_train_batch_start", 2, signal.SIGUSR1), Preemption(requeue=True))
    assert told.name == "SIGUSR1"
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


def test_without_checkpoints_it_goes_all_the_same(run: Callable[..., Any]) -> None:
    *_, told = run("bare", Tell("on_train_batch_start", 2), enable_checkpointing=False)
    assert told.path is None


def test_the_state_is_kept_by_the_clock(run: Callable[..., Any], tmp_path: Path) -> None:
    class Names(L.Callback):
        steps: list[int] = []

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            last = tmp_path / "clock" / "checkpoints" / "last.ckpt"
            if last.exists():
                self.steps.append(torch.load(last, weights_only=True)["global_step"])

    run("clock", Names(), Checkpoint(every_minutes=1e-9))
    assert Names.steps[:4] == [1, 2, 3, 4]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="signals must be of"):
        Preemption(("SIGKILL",))
    with pytest.raises(UserError, match="every_minutes must be above 0"):
        Checkpoint(every_minutes=0)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_end"])
def test_told_anywhere_between_validations_within_epochs(
    hook: str, run: Callable[..., Any], straight: Callable[..., Any]
) -> None:
    options = {"val_check_interval": 3}
    weights, expected, seen = straight(**options)
    # Batches before and after a validation and the end of an epoch, and the last of all; and validations in all places.
    places = {1, 3, 4, 7, 14} if hook == "on_train_batch_start" else {*range(1, seen[hook], 4), seen[hook]}
    assert max(places) == seen[hook]
    for count in sorted(places):
        _, _, first, told = run(f"told{count}", Tell(hook, count), **options)
        assert told is not None
        _, resumed, second, _ = run(f"told{count}", resume=True, **options)
        for name, value in weights.items():
            assert torch.equal(resumed.state_dict()[name], value), (count, name)
        assert first.found + second.found == expected, count


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}], ids=["validating at the end", "within"])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_end", "on_train_epoch_end"])
def test_told_around_the_end_of_an_epoch_and_again_soon(
    hook: str, options: dict[str, Any], run: Callable[..., Any], straight: Callable[..., Any]
) -> None:
    weights, _, _ = straight(**options)
    firsts = {"on_train_batch_start": (6, 7), "on_validation_batch_end": (1, 2), "on_train_epoch_end": (1,)}[hook]
    for first, second in zip(firsts, (3, 1) if options else (1, 3), strict=False):  # each pair in one of the two
        folder = f"{first}-{second}"
        *_, told = run(folder, Tell(hook, first), **options)
        assert told is not None
        *_, again = run(folder, Tell("on_train_batch_start", second), resume=True, **options)
        assert again is not None
        trainer, resumed, _, _ = run(folder, resume=True, **options)
        assert trainer.global_step == 14
        for name, value in weights.items():
            assert torch.equal(resumed.state_dict()[name], value), (first, second, name)
