"""A run that is told to go saves what it has at the end of its step, and goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from llm_arch.callbacks.checkpoint import Checkpoint, step_has_ended
from llm_arch.types import UserError

_SIGNALS = {name: getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)}


class Preempted(Exception):
    """The run was told to go; its last state is saved.

    Args:
        path: the checkpoint, or None where nothing new was to be saved.
        name: of the signal.
    """

    def __init__(self, path: str | None, name: str) -> None:
        super().__init__(name)
        self.path = path
        self.name = name


class Preemption(L.Callback):
    """On a signal: finish the step, save the last state, and stop with `Preempted`, which `llm-arch fit` makes exit 75.

    The signal itself only sets a flag, since no other moment has a state that a run could exactly go on from. A
    validation is broken off; the resumed run begins with it. All ranks stop at the same step, whichever was told.

    Args:
        signals: what it listens to: SIGTERM, SIGUSR1 or SIGUSR2.
        requeue: whether a SLURM job puts itself back into the queue (`scontrol requeue`); SLURM sends the signal before
            the time is up with `#SBATCH --signal=SIGUSR1@90`.
    """

    def __init__(self, signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1"), *, requeue: bool = False) -> None:
        for name in signals:
            if name not in _SIGNALS:
                raise UserError(f"signals must be of {', '.join(_SIGNALS)}, got {name!r}")
        self.signals = tuple(signals)
        self.requeue = requeue
        self.told: str | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen, in place of Lightning, which would break off anywhere."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in self.signals:
            self._before[_SIGNALS[name]] = signal.signal(_SIGNALS[name], self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = signal.Signals(number).name

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go where a step has ended; with the last of an epoch the epoch ends first, or its validation begins."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not last and step_has_ended(trainer) and self._all_told(trainer):
            self._go(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go at the end of an epoch."""
        if step_has_ended(trainer) and self._all_told(trainer):
            self._go(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Go: nothing of the training waits for the validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not step_has_ended(trainer):
            return
        # Ranks have different numbers of validation batches at times: only alone is this a place to agree at.
        if self.told and trainer.world_size == 1:
            self._go(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go, where several ranks could not before."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking and step_has_ended(trainer)
        if fitting and trainer.world_size > 1 and self._all_told(trainer):
            self._go(trainer)

    def _all_told(self, trainer: L.Trainer) -> bool:
        """Whether any rank was told."""
        if trainer.world_size == 1:
            return self.told is not None
        told = torch.tensor(float(self.told is not None), device=trainer.strategy.root_device)
        if not bool(trainer.strategy.reduce(told, reduce_op="sum") > 0):
            return False
        self.told = self.told or "another rank's signal"
        return True

    def _go(self, trainer: L.Trainer) -> None:
        name, self.told = str(self.told), None
        checkpoint = trainer.checkpoint_callback
        path = None
        if isinstance(checkpoint, Checkpoint):
            checkpoint.keep_last(trainer)
            path = checkpoint.last_model_path
        if self.requeue and trainer.is_global_zero:
            _requeue()
        raise Preempted(path, name)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen no longer."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _requeue() -> None:
    """Put this SLURM job back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job or shutil.which("scontrol") is None:
        rank_zero_info("requeue: this is no SLURM job, or there is no scontrol; start the run again by hand")
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    said = f"failed: {done.stderr.strip()}" if done.returncode else "done"
    rank_zero_info(f"scontrol requeue {job}: {said}")
