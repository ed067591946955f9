"""Multiple choice on CommonsenseQA 1.0 (three choices): accuracy over seeds, and examples/s beside a stock Trainer.

    python -m benchmarks.understanding choice quality --data DIR     the config's epochs, all defaults, 3 seeds
    python -m benchmarks.understanding choice speed --data DIR       2,000 rows × 1 epoch and prediction, one thread

Trained on all training rows; the last state is measured on the official development rows, as the answers of the test
rows are not public. The stock Trainer learns `AutoModelForMultipleChoice` from the same weights on the same rows.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.finetune import WARM_UP_ROWS, LoopClock
from benchmarks.measure import interleave, mean_std, median_ratio, native_bf16, write_results
from benchmarks.peer_tasks import PeerTask, Rows
from benchmarks.peer_trainer import minilm_directory, train_trainer
from llm_arch import Task, Trainer
from llm_arch.cli.configs import find
from llm_arch.cli.quiet import quiet
from llm_arch.data import MultipleChoiceData
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.inference import predict

SET = "commonsenseqa"
COLUMNS = {
    "question_column": "question.stem",
    "choices_column": "question.choices",
    "answer_column": "answerKey",
}
BAR = 0.45


class ChoicePeer(PeerTask):
    """The rows of the set for `AutoModelForMultipleChoice`; accuracy."""

    def _labels(self, rows: Rows) -> set[str]:
        return {choice["label"] for row in rows for choice in row["question"]["choices"]}

    def encode(self, rows: Rows, tokenizer: Any, max_length: int) -> Dataset:
        """A pair of texts for each choice; `length` is that of the longest, by which the tuned Trainer groups."""
        columns: dict[str, list[Any]] = {}
        for row in rows:
            texts = [choice["text"] for choice in row["question"]["choices"]]
            stems = [row["question"]["stem"]] * len(texts)
            encoded = tokenizer(stems, texts, truncation=True, max_length=max_length)
            for name, values in encoded.items():
                columns.setdefault(name, []).append(values)
        lengths = [max(map(len, ids)) for ids in columns["input_ids"]]
        return Dataset.from_dict(columns | {"labels": [self.labels[r["answerKey"]] for r in rows], "length": lengths})

    def model(self, directory: str | Path) -> Any:
        """A logit a choice on the pooled first token."""
        return AutoModelForMultipleChoice.from_pretrained(directory)

    def collator(self, tokenizer: Any) -> Any:
        """Pads each choice of a batch to the longest of all."""
        return DataCollatorForMultipleChoice(tokenizer)

    def score(self, predictions: Any, label_ids: Any) -> float:
        """Accuracy."""
        return float(np.mean(np.argmax(predictions, axis=-1) == label_ids))


@dataclass(frozen=True)
class Timing:
    """CPU seconds of training some rows, and of predicting others; both were tokenized before."""

    cpu_seconds: float
    samples: int
    predict_cpu_seconds: float
    predicted: int


def module(rows: Sequence[Row], folder: Path, **options: Any) -> MultipleChoiceData:
    """A data module on these training rows, with the defaults of the package."""
    train = str(write_jsonl(rows, folder / "train.jsonl"))
    given = {**COLUMNS, "tokenizer": str(minilm_directory()), "validation_fraction": 0, "cache_dir": str(folder)}
    return MultipleChoiceData(train, **given, **options)


def default_epochs() -> int:
    """What the config says."""
    config = yaml.safe_load(find("task/multiple_choice").read_text(encoding="utf-8"))
    return int(config["trainer"]["max_epochs"])


def ours(
    rows: Sequence[Row], test: Sequence[Row], seed: int, epochs: int, measure: bool
) -> tuple[Timing, float | None]:
    """Train with the package's Trainer and its defaults; predict the test rows, or measure on them."""
    L.seed_everything(seed, verbose=False)
    clock = LoopClock()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = str(write_jsonl(test, folder / "test.jsonl"))
        data = module(rows, folder, test=path, predict=path)
        task = Task(str(minilm_directory()), MultipleChoice, data.label_space)
        trainer = Trainer(
            max_epochs=epochs,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[clock],
        )
        gc.collect()
        trainer.fit(task, datamodule=data)
        if measure:
            accuracy = float(trainer.test(task, datamodule=data, verbose=False)[0]["test/accuracy"])
            return Timing(clock.cpu_seconds, task.trained_rows, 0.0, 0), accuracy
        data.split("predict")
        before = time.process_time()
        found = predict(trainer, task, data)
        return Timing(clock.cpu_seconds, task.trained_rows, time.process_time() - before, len(found)), None


def quality_run(who: str, root: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train on all training rows and measure the last state."""
    quiet()
    torch.set_num_threads(1)
    rows = load(SET, Path(root))
    if who == "ours":
        _, accuracy = ours(rows["train"], rows["test"], seed, epochs, measure=True)
    else:
        accuracy = train_trainer(
            rows["train"], minilm_directory(), epochs=epochs, kind=ChoicePeer, seed=seed, evaluate_on=rows["test"]
        ).score
    return {"who": who, "seed": seed, "accuracy": accuracy}


def quality(options: argparse.Namespace, root: Path) -> None:
    """Both over all seeds, written after every run."""
    runs: list[dict[str, Any]] = []
    jobs = [(who, str(root), seed, options.epochs) for seed in options.seeds for who in options.who]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(quality_run, *job) for job in jobs]):
            runs.append(done.result())
            print(runs[-1], flush=True)
            write_quality(runs, options)


def write_quality(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| | accuracy by seed | mean ± std |", "|---|---|---|"]
    for who, name in (("ours", "ours"), ("stock", "stock Trainer")):
        scores = [run["accuracy"] for run in sorted(runs, key=lambda run: run["seed"]) if run["who"] == who]
        if scores:
            lines.append(f"| {name} | {', '.join(f'{a:.3f}' for a in scores)} | {mean_std(scores)} |")
    lines += [
        "",
        f"CommonsenseQA 1.0, {options.epochs} epochs on all training rows, last state, official development rows. A "
        f"guess is right in 0.333, and {BAR} is the least that ours should reach. Batch 32; ours with the package's "
        "defaults, the stock Trainer with a learning rate of 5e-5 in fp32.",
    ]
    write_results(
        "choice_quality", {"runs": runs, "epochs": options.epochs}, "\n".join(lines), data_directory=options.data
    )


def time_ours(rows: Sequence[Row], test: Sequence[Row]) -> Timing:
    """One epoch and one prediction, warmed up."""
    ours(rows[:WARM_UP_ROWS], test[:WARM_UP_ROWS], 0, 1, measure=False)
    return ours(rows, test, 0, 1, measure=False)[0]


def time_peer(rows: Sequence[Row], test: Sequence[Row], variant: Any) -> Timing:
    """The same with the stock Trainer."""
    bf16 = variant == "tuned" and native_bf16()
    done = train_trainer(
        rows, minilm_directory(), epochs=1, kind=ChoicePeer, variant=variant, bf16=bf16, evaluate_on=test
    )
    return Timing(done.cpu_seconds, done.samples, done.predict_cpu_seconds or 0.0, len(test))


def speed(options: argparse.Namespace, root: Path) -> None:
    """Ours and the peer as it comes and at its best, interleaved."""
    torch.set_num_threads(options.threads)
    rows = load(SET, root)
    train = random.Random(0).sample(rows["train"], min(options.rows, len(rows["train"])))
    test = rows["test"][: options.rows]
    runs: dict[str, Callable[[], Timing]] = {
        "ours": partial(time_ours, train, test),
        "stock": partial(time_peer, train, test, "stock"),
        "tuned": partial(time_peer, train, test, "tuned"),
    }
    found = interleave(runs, options.repeats)
    lines = [
        "| | ours, rows/s | stock Trainer | tuned Trainer | ours / stock | ours / tuned |",
        "|---|---|---|---|---|---|",
    ]
    for stage, seconds, count in (
        ("training", "cpu_seconds", "samples"),
        ("prediction", "predict_cpu_seconds", "predicted"),
    ):
        cpu = {who: [getattr(t, seconds) for t in timings] for who, timings in found.items()}
        rate = {who: median(getattr(t, count) / getattr(t, seconds) for t in timings) for who, timings in found.items()}
        against = [median_ratio(cpu[who], cpu["ours"]) for who in ("stock", "tuned")]
        rates = " | ".join(f"{rate[who]:.1f}" for who in runs)
        lines.append(f"| {stage} | {rates} | {against[0]} | {against[1]} |")
    lines += [
        "",
        f"CommonsenseQA 1.0: {len(train):,} rows × 1 epoch, batch 32, and prediction of {len(test):,} rows, all "
        f"tokenized before; {options.threads} thread, {options.repeats} interleaved repeats, rows (of three sequences) "
        "per CPU second, medians with least and greatest. Precision: "
        f"{'bf16 (ours, tuned)' if native_bf16() else 'fp32 everywhere, since this CPU has no bf16'}; stock is fp32.",
    ]
    payload = {
        "timings": {who: [vars(t) for t in timings] for who, timings in found.items()},
        "rows": options.rows,
        "threads": options.threads,
    }
    write_results("choice_speed", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--who", nargs="+", choices=("ours", "stock"), default=["ours", "stock"], help="quality: whose")
    parser.add_argument("--epochs", type=int, default=default_epochs())
    parser.add_argument("--processes", type=int, default=2, help="quality runs at a time, one thread each")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    {"quality": quality, "speed": speed}[options.what](options, root)


if __name__ == "__main__":
    sys.exit(main())
