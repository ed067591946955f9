"""Our side of pretraining: the package's data modules, heads, Task and Trainer, timed as the peers are."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.corpora import Corpus
from benchmarks.finetune import LoopClock
from benchmarks.peak_memory import PeakMemory
from benchmarks.pretraining import Recipe, Run
from llm_arch import Task, Trainer
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks.compilation import Compile
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.module import DataModule
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.data.sentence_pairs import SentencePairData
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.optim import Linear, Muon, RowAdamW, Schedule, WarmupStableDecay
from llm_arch.types import Batch, Head


@dataclass(frozen=True)
class Objective:
    """What is learnt.

    Args:
        data: the data module.
        head: the head.
        special: special tokens in each sequence, which are not counted.
    """

    data: Callable[..., DataModule]
    head: Callable[..., Head]
    special: int


MASKED = Objective(MaskedTokenData, MaskedLanguageModel, special=2)
CAUSAL = Objective(NextTokenData, LanguageModel, special=0)
PAIRS = Objective(SentencePairData, BertPretraining, special=3)


class Curve(LoopClock):
    """Times the loop, and keeps the loss of every step, how many tokens it is a mean over, and all tokens.

    Args:
        special: special tokens in each sequence.
    """

    def __init__(self, special: int) -> None:
        super().__init__()
        self.special = special
        self.tokens = 0
        self.losses: list[Any] = []
        self.predicted: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Note a step."""
        super().on_train_batch_end()
        self.tokens += len(batch.input_ids) - self.special * batch.size
        self.losses.append(outputs["loss"].detach())
        self.predicted.append(len(batch.labels["targets"]))


def optimizer_named(name: str, learning_rate: float, weight_decay: float) -> Any:
    """AdamW with the betas that language models are trained with, or Muon with the same for what it leaves to AdamW."""
    if name == "muon":
        return partial(Muon, lr=learning_rate, weight_decay=weight_decay)
    return partial(RowAdamW, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.95))


SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "linear": lambda warmup: Linear(warmup),
    "wsd": lambda warmup: WarmupStableDecay(warmup),
}


def data_of(objective: Objective, corpus: Corpus, recipe: Recipe, cache: Path, **options: Any) -> DataModule:
    """The data module on a corpus, its documents encoded and kept in a folder."""
    return objective.data(
        str(corpus.train),
        str(corpus.validation),
        str(corpus.test),
        tokenizer=str(corpus.tokenizer),
        max_length=recipe.length,
        max_tokens=recipe.tokens,
        evaluation_tokens=recipe.tokens,
        cache_dir=str(cache),
        **options,
    )


def fit(
    objective: Objective,
    data: DataModule,
    start: dict[str, Any] | str,
    recipe: Recipe,
    *,
    optimizer: Any = None,
    schedule: Schedule | None = None,
    memory: bool = False,
    compiled: bool = False,
    passes: int = 1,
    callbacks: Sequence[L.Callback] = (),
    **trainer_options: Any,
) -> tuple[Run, Task, Trainer]:
    """Train with the package's Trainer.

    Args:
        objective: what is learnt.
        data: as `data_of` makes it.
        start: the configuration of a model of transformers, for random weights, or the directory of a model.
        recipe: how to train.
        optimizer: instead of AdamW with the recipe's learning rate and weight decay.
        schedule: instead of the linear one.
        memory: measure the peak memory of the loop.
        compiled: train with `Compile`.
        passes: over the data, where the recipe has no number of steps.
        callbacks: further ones.
        **trainer_options: what else the Trainer takes.
    """
    L.seed_everything(recipe.seed, verbose=False)
    clock = Curve(objective.special)
    rates = {} if optimizer else {"learning_rate": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    task = Task(
        start if isinstance(start, str) else Pretrained(config=dict(start)),
        objective.head,
        data.label_space,
        optimizer=optimizer,
        lr_scheduler=schedule or Linear(warmup=recipe.warmup),
        **rates,
    )
    length = {"max_epochs": passes} if recipe.steps is None else {"max_steps": recipe.steps}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[clock, *([Compile()] if compiled else []), *callbacks],
            **length,
            **trainer_options,
        )
        gc.collect()
        peak = PeakMemory()
        with peak if memory else nullcontext():
            trainer.fit(task, datamodule=data)
    losses = [float(loss) for loss in clock.losses]
    run = Run(clock.cpu_seconds, clock.seconds, clock.tokens, losses, clock.predicted)
    return replace(run, peak_mib=peak.mib if memory else None), task, trainer


def measured(task: Task, data: DataModule, split: str) -> dict[str, float]:
    """All metrics on a held-out split, by name."""
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loader = data.evaluation_loader(split)
    found = trainer.validate(task, loader, verbose=False)[0]
    return {name.removeprefix("val/"): float(value) for name, value in found.items()}


def train_own(
    objective: Objective,
    corpus: Corpus,
    config: dict[str, Any],
    recipe: Recipe,
    cache: Path,
    *,
    memory: bool = False,
    held_out: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Warm up on one step, train, and measure on held-out splits, whose metrics are the run's notes.

    Args:
        objective: `MASKED` or `CAUSAL`.
        corpus: the documents.
        config: of a model of transformers.
        recipe: how to train.
        cache: where encoded documents are kept.
        memory: measure the peak memory of the loop, after a warm-up on one sequence.
        held_out: "validation", "test" or both; the loss on the first is the run's.
        **options: what else `fit` takes.
    """
    small = replace(recipe, steps=1, tokens=recipe.length if memory else recipe.tokens)
    fit(objective, data_of(objective, corpus, small, cache), config, small, **options)
    data = data_of(objective, corpus, recipe, cache)
    run, task, _ = fit(objective, data, config, recipe, memory=memory, **options)
    found = {split: measured(task, data, split) for split in held_out}
    notes = {f"{split}/{name}": value for split, metrics in found.items() for name, value in metrics.items()}
    notes["parameters"] = sum(parameter.numel() for parameter in task.parameters())
    return replace(run, held_out=found[held_out[0]]["loss"] if held_out else None, notes=notes)


def held_out_batches(corpus: Corpus, recipe: Recipe, cache: Path) -> Any:
    """Batches of our masked validation data, for measuring a peer's model on the same masks."""
    return data_of(MASKED, corpus, recipe, cache).evaluation_loader("validation")
