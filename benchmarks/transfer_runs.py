"""The runs of `benchmarks.pretrain transfer`: pretraining, going on with a task's texts, and fine-tuning."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.corpora import Corpus
from benchmarks.evaluation_data import Row, write_jsonl
from benchmarks.finetune import kind_of
from benchmarks.measure import native_bf16
from benchmarks.pretraining import BERT_MINI, Recipe
from llm_arch import Task, Trainer
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.cli.quiet import quiet
from llm_arch.heads.classification import SequenceClassification
from llm_arch.types.batch import Pooling

SET = "trec"


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the backbone."""
    return BERT_MINI | {"vocab_size": options.vocabulary}


def pretrained(corpus: Corpus, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """A model that has read the corpus, in `pretrained-SEED` of a folder; what it took and reached, by name."""
    place = folder / f"pretrained-{seed}"
    if place.is_dir():
        return _noted(place)
    from benchmarks.own_pretraining import PAIRS, data_of, fit, measured, optimizer_named
    from llm_arch.inference.directory import save

    _begin()
    recipe = Recipe(options.batch_tokens, options.length, options.pretraining_rate, seed=seed, bf16=native_bf16())
    data = data_of(PAIRS, corpus, recipe, folder / f"cache-{seed}")
    muon = options.optimizer == "muon"
    optimizer = optimizer_named("muon", recipe.learning_rate, recipe.weight_decay) if muon else None
    run, task, _ = fit(PAIRS, data, _with_dropout(options), recipe, passes=options.passes, optimizer=optimizer)
    notes = {"cpu_seconds": run.cpu_seconds, "tokens": run.tokens, **measured(task, data, "validation")}
    place.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")
    save(task, data, place)
    return notes


def continued(
    start: str, rows: list[Row], corpus: Corpus, seed: int, options: argparse.Namespace, folder: Path, name: str
) -> dict[str, float]:
    """A model that has read the texts of a task's rows too, with masked tokens; what it took and reached, by name.

    Args:
        start: the directory of the model that goes on, or "" for random weights.
        rows: their labels are not looked at.
        corpus: tells the tokenizer.
        seed: of weights, order and masks.
        options: those of the benchmark.
        folder: where it is kept.
        name: under which name.
    """
    place = folder / name
    if place.is_dir():
        return _noted(place)
    from benchmarks.own_pretraining import MASKED, data_of, fit
    from llm_arch.inference.directory import save

    _begin()
    texts = write_jsonl([{"text": row["text"]} for row in rows], folder / f"{name}.jsonl")
    recipe = Recipe(options.batch_tokens, options.length, options.pretraining_rate, seed=seed, bf16=native_bf16())
    data = data_of(MASKED, replace(corpus, train=texts), recipe, folder / f"cache-{name}")
    run, task, _ = fit(MASKED, data, start or _with_dropout(options), recipe, passes=options.continued)
    notes = {"cpu_seconds": run.cpu_seconds, "tokens": run.tokens}
    place.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")
    save(task, data, place)
    return notes


def finetune(
    start: str,
    train: list[Row],
    test: list[Row],
    tokenizer: str,
    how: tuple[Pooling, float],
    seed: int,
    options: argparse.Namespace,
) -> float:
    """Accuracy after training from a model directory, or from random weights where there is none."""
    _begin()
    L.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            name: str(write_jsonl(rows, Path(scratch) / f"{name}.jsonl"))
            for name, rows in (("train", train), ("test", test))
        }
        data = kind_of(SET).data(**files, tokenizer=tokenizer, validation_fraction=0, cache_dir=scratch)
        backbone = start or Pretrained(config=shape(options))
        pooling, rate = how
        task = Task(
            backbone, SequenceClassification, data.label_space, pooling=pooling, learning_rate=rate, dropout=0.1
        )
        trainer = Trainer(
            max_epochs=options.epochs,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(task, datamodule=data)
        return float(trainer.test(task, datamodule=data, verbose=False)[0]["test/accuracy"])


def _begin() -> None:
    quiet()
    torch.set_num_threads(1)


def _with_dropout(options: argparse.Namespace) -> dict[str, Any]:
    return shape(options) | {f"{part}_dropout_prob": options.dropout for part in ("hidden", "attention_probs")}


def _noted(place: Path) -> dict[str, float]:
    """What a run took and reached that lies there from before."""
    found: dict[str, float] = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    return found
