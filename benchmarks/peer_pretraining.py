"""The peer: pretraining with the Hugging Face Trainer, as transformers' own `run_mlm` and `run_clm` do it, at its best.

Rows are tokenized before the clock starts, and only the training loop is timed. "At its best" is what a user can set
for speed on a CPU without code of their own: bfloat16, fused AdamW, no logging, no workers, special tokens marked
beforehand, and for rows of different lengths batches of like ones.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks.peak_memory import PeakMemory
from benchmarks.peer_trainer import TrainerClock, quiet_transformers, tuned_arguments
from benchmarks.pretraining import Recipe, Run

_NO_LABEL = -100


def texts_of(path: Path) -> list[str]:
    """The documents of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def masked_blocks(texts: list[str], tokenizer: Any, length: int) -> Dataset:
    """`group_texts`: all documents one after another, with their special tokens, cut into blocks; the rest is lost."""
    encoded = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
    names = ("input_ids", "attention_mask", "special_tokens_mask")
    joined = {name: list(chain.from_iterable(encoded[name])) for name in names}
    ends = range(0, len(joined["input_ids"]) // length * length, length)
    return Dataset.from_dict({name: [ids[i : i + length] for i in ends] for name, ids in joined.items()})


def masked_rows(texts: list[str], tokenizer: Any, length: int) -> Dataset:
    """`line_by_line`: a row a text, cut at the longest length, with its length to group by."""
    encoded = tokenizer(texts, truncation=True, max_length=length, return_special_tokens_mask=True)
    names = ("input_ids", "attention_mask", "special_tokens_mask")
    columns = {name: encoded[name] for name in names}
    return Dataset.from_dict(columns | {"length": [len(ids) for ids in encoded["input_ids"]]})


def causal_blocks(texts: list[str], tokenizer: Any, length: int) -> Dataset:
    """`group_texts` for causal models: documents one after another with an end between them, cut into blocks."""
    end = [tokenizer.eos_token_id]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    joined = list(chain.from_iterable(one + end for one in ids))
    blocks = [joined[i : i + length] for i in range(0, len(joined) // length * length, length)]
    # A block's first label is never used; marked, it is not counted either.
    labels = [[_NO_LABEL, *block[1:]] for block in blocks]
    return Dataset.from_dict({"input_ids": blocks, "labels": labels}).with_format("torch")


def causal_rows(texts: list[str], tokenizer: Any, length: int) -> Dataset:
    """A row a document, cut at the longest length, with its length to group by."""
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    return Dataset.from_dict({"input_ids": ids, "length": [len(one) for one in ids]})


def train_masked(
    kind: Literal["blocks", "rows"],
    train: Path,
    tokenizer_directory: Path,
    config: dict[str, Any],
    recipe: Recipe,
    held_out: Any = None,
    **arguments: Any,
) -> Run:
    """Masked language modelling on blocks, or on a row a document in batches of like lengths.

    Args:
        kind: `group_texts` or `line_by_line`.
        train: the documents.
        tokenizer_directory: the tokenizer.
        config: a BERT configuration.
        recipe: how to train.
        held_out: batches of ours to measure the loss on afterwards, or None.
        **arguments: further `TrainingArguments`; `skip`, a number of steps before those that are timed; and
            `accumulation`, in how many parts a batch is computed, each padded to its own longest row; and `turn`, which
            is taken before it trains.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    rows = (masked_blocks if kind == "blocks" else masked_rows)(texts_of(train), tokenizer, recipe.length)
    model_of = _from_config(AutoModelForMaskedLM, config)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    run, model = _train(model_of, rows, collator, recipe, group=kind == "rows", **arguments)
    special = sum(map(sum, rows["special_tokens_mask"])) / len(rows)
    loss = None if held_out is None else masked_loss(model, held_out, recipe.bf16)
    return replace(run, tokens=round(run.tokens - special * run.notes["rows"]), held_out=loss)


def train_causal(
    kind: Literal["blocks", "rows"],
    train: Path,
    tokenizer_directory: Path,
    config: dict[str, Any],
    recipe: Recipe,
    *,
    memory: bool = False,
    **arguments: Any,
) -> Run:
    """Causal language modelling, as `train_masked`; with `memory` the peak of the training loop is measured."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    rows = (causal_blocks if kind == "blocks" else causal_rows)(texts_of(train), tokenizer, recipe.length)
    model_of = _from_config(AutoModelForCausalLM, {**config, "use_cache": False})
    collator: Any = default_data_collator
    if kind == "rows":
        tokenizer.pad_token = tokenizer.eos_token
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return _train(model_of, rows, collator, recipe, group=kind == "rows", memory=memory, **arguments)[0]


@torch.no_grad()
def masked_loss(model: PreTrainedModel, batches: Iterable[Any], bf16: bool) -> float:
    """The mean loss at the masked positions of flat batches of ours, padded for a model of transformers."""
    model.eval()
    total = count = 0.0
    for batch in batches:
        sequences = batch.input_ids.split(batch.lengths.tolist())
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        real = torch.arange(ids.shape[1]) < batch.lengths[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, attention_mask=real.long()).logits
        chosen = logits[real][batch.labels["positions"]].float()
        total += float(F.cross_entropy(chosen, batch.labels["targets"], reduction="sum"))
        count += len(chosen)
    return total / count


def _from_config(kind: Any, config: dict[str, Any]) -> Callable[[], PreTrainedModel]:
    options = {key: value for key, value in config.items() if key != "model_type"}

    def build() -> PreTrainedModel:
        model = kind.from_config(AutoConfig.for_model(config["model_type"], **options))
        if kind is AutoModelForMaskedLM:
            # BERT takes the number of labels of a whole batch, but divides by that of the part at hand: without this
            # the Trainer would add up the gradients of the parts, not average them.
            model.accepts_loss_kwargs = False
        return model

    return build


def _train(
    model_of: Callable[[], PreTrainedModel],
    rows: Dataset,
    collator: Any,
    recipe: Recipe,
    *,
    group: bool,
    memory: bool = False,
    skip: int = 0,
    accumulation: int = 1,
    turn: Any = None,
    **arguments: Any,
) -> tuple[Run, PreTrainedModel]:
    """Train; the first `skip` steps are beyond the recipe's, and not timed; where there are any, no curve is kept."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    batch = max(1, round(recipe.tokens * len(rows) / sum(lengths)))
    with quiet_transformers(), tempfile.TemporaryDirectory() as scratch:

        def build(rows: Dataset, steps: int | None) -> _Counting:
            set_seed(recipe.seed)
            given: dict[str, Any] = {
                "output_dir": scratch,
                "num_train_epochs": 1,
                "max_steps": steps or -1,
                "per_device_train_batch_size": max(1, round(batch / accumulation)),
                "gradient_accumulation_steps": accumulation,
                "learning_rate": recipe.learning_rate,
                "lr_scheduler_type": "linear",
                "warmup_steps": recipe.warmup,
                "weight_decay": recipe.weight_decay,
                "seed": recipe.seed,
                "use_cpu": True,
                "eval_strategy": "no",
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                **tuned_arguments(recipe.bf16, group_by_length=group),
                **arguments,
            }
            trainer = _Counting(
                model=model_of(), args=TrainingArguments(**given), train_dataset=rows, data_collator=collator
            )
            trainer.remove_callback(PrinterCallback)
            return trainer

        if not skip:
            # First use of kernels belongs to nobody. Memory is measured after one row, whose traces are small.
            build(rows.select(range(min(1 if memory else batch, len(rows)))), 1).train()
        steps = None if recipe.steps is None else recipe.steps + skip
        trainer, clock, curve = build(rows, steps), TrainerClock(skip, turn), _Curve()
        trainer.add_callback(clock)
        if not skip:  # a hook would cut a compiled model in two
            trainer.model.register_forward_hook(curve, with_kwargs=True)
        gc.collect()
        peak = PeakMemory()
        with peak if memory else nullcontext():
            trainer.train()
        losses, predicted = [float(loss) for loss in curve.losses], [int(count) for count in curve.predicted]
        counted = trainer.counted[skip * accumulation :]
        trained, tokens = (int(sum(counts)) for counts in zip(*counted, strict=True))
        found = Run(
            clock.cpu_seconds, clock.seconds, tokens, losses, predicted, notes={"rows": trained, "batch": batch}
        )
        return replace(found, peak_mib=peak.mib if memory else None), trainer.model


class _Counting(Trainer):
    """The Trainer, with the rows and the real tokens of each part of a batch, as it is given them."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.counted: list[tuple[int, int | torch.Tensor]] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **further: Any) -> torch.Tensor:
        """Count, and go on."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        # As a tensor: a number would have to be waited for on a GPU.
        self.counted.append((len(ids), ids.numel() if mask is None else mask.sum()))
        return super().training_step(model, inputs, *more, **further)


class _Curve:
    """A hook on the model that keeps the mean loss of every forward pass, and how many labels it is a mean over."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.predicted: list[torch.Tensor] = []

    def __call__(self, model: Any, positional: Any, given: dict[str, Any], output: Any) -> None:
        count = (given["labels"] != _NO_LABEL).sum()
        # Where the model takes the number of labels of a whole batch, it divides the sum of a part by that.
        self.losses.append(output.loss.detach() * given.get("num_items_in_batch", count) / count)
        self.predicted.append(count)
