"""The peer under the script of `benchmarks.chaos`: the stock Trainer of transformers, resumed as its manual says."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.chaos_attempt import EPOCHS, SEED
from benchmarks.chaos_kills import kill_at_random
from benchmarks.chaos_processes import alone
from benchmarks.peer_trainer import minilm_directory

SAVE_STEPS = 5


def fit(folder: Path, rows: list[dict[str, Any]], tokenizer: Any) -> None:
    """Train on from the last checkpoint that the Trainer finds, and leave the final weights."""
    set_seed(SEED)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        save_steps=SAVE_STEPS,
        save_total_limit=3,
        seed=SEED,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows)  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=last(folder))
    torch.save(model.state_dict(), folder / "final.partial")
    os.replace(folder / "final.partial", folder / "final.pt")


def last(folder: Path) -> str | None:
    """The checkpoint that it goes on from."""
    return get_last_checkpoint(str(folder / "out")) if (folder / "out").is_dir() else None


def position(folder: Path) -> int:
    """The step of that checkpoint."""
    found = last(folder)
    return int(found.rpartition("-")[2]) if found else 0


def give_way(folder: Path) -> bool:
    """Remove the checkpoint that can't be resumed from, as its user would have to."""
    found = last(folder)
    if found:
        shutil.rmtree(found)
    return bool(found)


def run(home: Path, file: str, kills: int, draw: random.Random) -> dict[str, Any]:
    """So many SIGKILLs.

    Args:
        home: where to work.
        file: the rows.
        kills: how many.
        draw: the source of moments.
    """
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    with Path(file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    encoded = [{**tokenizer(row["text"]), "label": int(row["label"] == "on")} for row in rows]

    def attempt(folder: Path) -> None:
        fit(folder, encoded, tokenizer)

    reference, seconds = alone(home / "reference", attempt)
    tally = kill_at_random(home, reference, seconds, kills, draw, attempt, position, give_way)
    return {**vars(tally), "cpu_seconds_a_run": round(seconds, 2), "save_steps": SAVE_STEPS}
