"""What saving costs."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.chaos_attempt import MINILM
from benchmarks.chaos_processes import DONE, error_of, fork, wait
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer


class Clock(L.Callback):
    """Seconds of steps and of saves."""

    def __init__(self, path: Path, saves: int) -> None:
        self.path, self.saves = path, saves
        self.steps: list[float] = []
        self.saving: list[float] = []
        self.mark = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.mark = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop it, and save at times."""
        self.steps.append(time.perf_counter() - self.mark)
        if len(self.steps) % 10 == 0 and len(self.saving) < self.saves:
            begun = time.perf_counter()
            trainer.save_checkpoint(self.path)
            self.saving.append(time.perf_counter() - begun)


def costs(home: Path, saves: int = 5) -> dict[str, Any]:
    """What a save of a real model takes: MiniLM on the embedded set, with the defaults of `fit`."""
    where = home / "cost"
    where.mkdir()

    def measure() -> None:
        L.seed_everything(0, verbose=False)
        data = TextClassificationData("smart_home", tokenizer=MINILM)
        task = Task(MINILM, SequenceClassification, data.label_space)
        clock = Clock(where / "one.ckpt", saves)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=10 * saves + 1,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            callbacks=[clock],
            default_root_dir=str(where),
        )
        trainer.fit(task, datamodule=data)
        step, save = statistics.median(clock.steps), statistics.median(clock.saving)
        epoch = len(data.train_dataloader())  # type: ignore[arg-type]
        # At the end of an epoch the last state is written, which is the best one too, or none is written as best.
        each = save / (epoch * step)
        found = {
            "model": "MiniLM, 22.7 M parameters",
            "seconds_a_step": round(step, 4),
            "seconds_a_save": round(save, 3),
            "checkpoint_mib": round((where / "one.ckpt").stat().st_size / 2**20, 1),
            "steps_an_epoch": epoch,
            "saves_an_epoch": 1,
            "share_with_the_defaults": round(each, 4),
            "minutes_between_saves_for_2_percent": round(save / 0.02 / 60, 2),
        }
        (where / "found.json").write_text(json.dumps(found))

    if wait(fork(measure, where / "log")) != DONE:
        raise SystemExit(f"the cost of saving could not be measured: {error_of(where / 'log')}")
    found: dict[str, Any] = json.loads((where / "found.json").read_text())
    return found
