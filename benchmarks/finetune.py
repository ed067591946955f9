"""Fine-tuning MiniLM-L6: quality over seeds, and speed beside a stock Trainer in the same run.

    python -m benchmarks.finetune quality --data DIR     3 epochs, one set of defaults for all sets, 3 seeds
    python -m benchmarks.finetune speed --data DIR       2,000 rows × 1 epoch, interleaved with the peer, one thread

Text classification on SST-2, TREC-6 and Banking77; with `--task ner`, entities of WNUT17
(`benchmarks/evaluation_data.py` names the public sources).
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning as L
import torch

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.measure import fresh, interleave, mean_std, median_ratio, native_bf16, write_results
from benchmarks.peer_tasks import PeerTask, SequencePeer, TokenPeer
from benchmarks.peer_trainer import minilm_directory, train_trainer
from llm_arch import Task, Trainer
from llm_arch.adamw import RowAdamW
from llm_arch.cli.quiet import quiet
from llm_arch.data import DataModule, TextClassificationData, TokenClassificationData
from llm_arch.gradients import clip_gradients
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.optim import make_embeddings_sparse, parameter_groups
from llm_arch.types import Head

WARM_UP_ROWS = 64


@dataclass(frozen=True)
class Kind:
    """A task: who reads its rows, who learns it, and on which sets.

    Args:
        data: our data module.
        head: our head.
        peer: the peer's counterpart.
        metric: the key of the metric that is compared.
        other: a second metric to report.
        sets: the sets, each with the metric of the stock Trainer by seed: same model, epochs and batch size, learning
            rate 5e-5, linear decay, bf16 autocast, random order, last checkpoint, official test split; measured once on
            a machine with bf16.
    """

    data: type[DataModule]
    head: type[Head]
    peer: type[PeerTask]
    metric: str
    other: str
    sets: dict[str, tuple[float, ...]]


KINDS = {
    "classification": Kind(
        TextClassificationData,
        SequenceClassification,
        SequencePeer,
        "accuracy",
        "macro_f1",
        {"sst2": (0.885, 0.884, 0.892), "trec": (0.960, 0.968, 0.960), "banking77": (0.703, 0.717)},
    ),
    "ner": Kind(
        TokenClassificationData, TokenClassification, TokenPeer, "f1", "accuracy", {"wnut17": (0.362, 0.349, 0.355)}
    ),
}
_RESULTS = {"classification": "finetune", "ner": "ner"}


def kind_of(name: str) -> Kind:
    """The task of a set."""
    return next(kind for kind in KINDS.values() if name in kind.sets)


@dataclass(frozen=True)
class Timing:
    """Seconds of one training loop: wall clock, CPU of the process, and the median CPU seconds of a step."""

    seconds: float
    cpu_seconds: float
    samples: int
    step: float


class LoopClock(L.Callback):
    """Times the training loop as the peer's is timed: from the first batch to after the last, nothing around it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._last = self._cpu

    def on_train_batch_end(self, *args: Any) -> None:
        """Note a step, loading its batch included."""
        now = time.process_time()
        self.steps.append(now - self._last)
        self._last = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu


def module(name: str, rows: list[Row], folder: Path, **options: Any) -> Any:
    """A data module on these training rows of a set, with the defaults of the package."""
    path = write_jsonl(rows, folder / "train.jsonl")
    return kind_of(name).data(
        str(path), tokenizer=str(minilm_directory()), validation_fraction=0, cache_dir=str(folder), **options
    )


def quality_run(name: str, root: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train on all training rows with the defaults, test the last state on the official test split."""
    quiet()
    torch.set_num_threads(1)
    rows = load(name, Path(root))
    L.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = module(name, rows["train"], folder, test=str(write_jsonl(rows["test"], folder / "test.jsonl")))
        task = Task(str(minilm_directory()), kind_of(name).head, data.label_space)
        trainer = Trainer(
            max_epochs=epochs,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(task, datamodule=data)
        found = trainer.test(task, datamodule=data, verbose=False)[0]
    metrics = {key.removeprefix("test/"): float(value) for key, value in found.items()}
    return {"set": name, "seed": seed, **metrics, "train_seconds": task.train_seconds, "trained_in": trainer.precision}


def quality(options: argparse.Namespace, root: Path) -> None:
    """All sets and seeds, written after every run."""
    runs: list[dict[str, Any]] = []
    jobs = [(name, str(root), seed, options.epochs) for seed in options.seeds for name in options.sets]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(quality_run, *job) for job in jobs]):
            runs.append(done.result())
            print(runs[-1], flush=True)
            write_quality(runs, options)


def write_quality(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    kind = KINDS[options.task]
    lines = [
        f"| set | {kind.metric} by seed | mean ± std | {kind.other} | stock Trainer by seed | its mean | difference |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in options.sets:
        here = sorted((r for r in runs if r["set"] == name), key=lambda r: r["seed"])
        if not here:
            continue
        scores, peer = [r[kind.metric] for r in here], kind.sets[name]
        lines.append(
            f"| {name} | {', '.join(f'{a:.3f}' for a in scores)} | {mean_std(scores)} "
            f"| {mean(r[kind.other] for r in here):.3f} | {', '.join(f'{a:.3f}' for a in peer)} "
            f"| {mean(peer):.3f} | {100 * (mean(scores) - mean(peer)):+.1f} points |"
        )
    lines += ["", f"{options.epochs} epochs, last state, official test split, one set of defaults for all sets."]
    payload = {"runs": runs, "peer": kind.sets, "epochs": options.epochs}
    write_results(f"{_RESULTS[options.task]}_quality", payload, "\n".join(lines), data_directory=options.data)


def time_ours(name: str, rows: list[Row], seed: int, **head: Any) -> Timing:
    """One epoch with the package's Trainer and its defaults."""

    def fit(rows: list[Row]) -> tuple[LoopClock, Task]:
        L.seed_everything(seed, verbose=False)
        clock = LoopClock()
        with tempfile.TemporaryDirectory() as scratch:
            data = module(name, rows, Path(scratch))
            task = Task(str(minilm_directory()), partial(kind_of(name).head, **head), data.label_space)
            trainer = Trainer(
                max_epochs=1,
                default_root_dir=scratch,
                enable_checkpointing=False,
                enable_progress_bar=False,
                callbacks=[clock],
            )
            gc.collect()
            trainer.fit(task, datamodule=data)
        return clock, task

    fit(rows[:WARM_UP_ROWS])
    clock, task = fit(rows)
    return Timing(clock.seconds, clock.cpu_seconds, task.trained_rows, median(clock.steps))


def time_bare(name: str, rows: list[Row], seed: int) -> Timing:
    """The same batches, model and optimizer in a loop of a few lines: what the framework itself costs."""
    L.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        data = module(name, rows, Path(scratch))
        task = Task(str(minilm_directory()), kind_of(name).head, data.label_space)
        task.train()
        make_embeddings_sparse(task)
        optimizer = RowAdamW(parameter_groups(task, task.weight_decay), lr=task.learning_rate)
        parameters = list(task.parameters())
        loader = data.train_dataloader()
        schedule = task.lr_scheduler(optimizer, len(loader))
        bf16 = native_bf16()
        samples, steps = 0, []
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        last = cpu
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = task.loss(batch).mean
            loss.backward()
            clip_gradients(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            samples += batch.rows
            steps.append(time.process_time() - last)
            last = time.process_time()
        return Timing(time.perf_counter() - wall, time.process_time() - cpu, samples, median(steps))


def time_peer(name: str, rows: list[Row], seed: int, variant: Any) -> Timing:
    """One epoch with the stock Trainer."""
    options: dict[str, Any] = {"variant": variant, "bf16": variant == "tuned" and native_bf16()}
    done = train_trainer(rows, minilm_directory(), epochs=1, kind=kind_of(name).peer, seed=seed, **options)
    return Timing(done.seconds, done.cpu_seconds, done.samples, done.cpu_seconds / done.steps)


def _alone(threads: int, run: Callable[..., Timing], *arguments: Any, **options: Any) -> Timing:
    """A run in a process of its own, as a user starts it: memory that an earlier one has cut up slows down a later."""
    return fresh(_with_threads, threads, run, *arguments, **options)


def _with_threads(threads: int, run: Callable[..., Timing], *arguments: Any, **options: Any) -> Timing:
    quiet()
    torch.set_num_threads(threads)
    return run(*arguments, **options)


def speed(options: argparse.Namespace, root: Path) -> None:
    """Ours, a bare loop, and the peer as it comes and at its best, interleaved."""
    alone = partial(_alone, options.threads)
    results: dict[str, Any] = {}
    for name in options.sets:
        rows = load(name, root)["train"]
        random.Random(0).shuffle(rows)
        rows = rows[: options.rows]
        runs: dict[str, Callable[[], Timing]] = {
            "ours": partial(alone, time_ours, name, rows, 0),
            "bare": partial(alone, time_bare, name, rows, 0),
            "stock": partial(alone, time_peer, name, rows, 0, "stock"),
            "tuned": partial(alone, time_peer, name, rows, 0, "tuned"),
        }
        if options.task == "ner":
            runs["crf"] = partial(alone, time_ours, name, rows, 0, crf=True)
        results[name] = {key: [vars(t) for t in found] for key, found in interleave(runs, options.repeats).items()}
        print(name, results[name], flush=True)
        write_speed(results, options)


def write_speed(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Results so far as json and table; ratios are of CPU seconds, which other work on the machine hardly moves."""
    lines = ["| set | ours, rows/s | stock Trainer | tuned Trainer | ours / stock | ours / tuned | over a bare loop |"]
    lines += ["|---|---|---|---|---|---|---|"]
    ratios: dict[str, list[float]] = {"stock": [], "tuned": []}
    for name, found in results.items():
        rate = {k: median(t["samples"] / t["cpu_seconds"] for t in runs) for k, runs in found.items()}
        cpu = {k: [t["cpu_seconds"] for t in runs] for k, runs in found.items()}
        overhead = median_ratio([t["step"] for t in found["ours"]], [t["step"] for t in found["bare"]])
        against = {k: median_ratio(cpu[k], cpu["ours"]) for k in ratios}
        for k, ratio in against.items():
            ratios[k].append(ratio.median)
        lines.append(
            f"| {name} | {rate['ours']:.1f} | {rate['stock']:.1f} | {rate['tuned']:.1f} | {against['stock']} "
            f"| {against['tuned']} | {100 * (overhead.median - 1):+.1f} % |"
        )
    lines += [
        f"| mean | | | | **{mean(ratios['stock']):.2f}** | **{mean(ratios['tuned']):.2f}** | |",
        "",
        f"{options.rows:,} rows × 1 epoch, batch 32, {options.threads} thread, {options.repeats} interleaved repeats, "
        f"each run in a process of its own, rows per CPU second, medians with least and greatest. Precision: "
        f"{'bf16 (ours, tuned)' if native_bf16() else 'fp32 everywhere, since this CPU has no bf16'}; stock is fp32. "
        "Over a bare loop: median CPU time of a step against a loop of ten lines with the same batches.",
    ]
    for name, found in results.items():
        if "crf" in found:
            more = median_ratio([t["step"] for t in found["crf"]], [t["step"] for t in found["ours"]])
            lines += ["", f"With a CRF on {name} a step takes {100 * (more.median - 1):+.1f} % CPU time ({more})."]
    payload = {"timings": results, "rows": options.rows, "threads": options.threads}
    write_results(f"{_RESULTS[options.task]}_speed", payload, "\n".join(lines), data_directory=options.data)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--task", choices=KINDS, default="classification")
    parser.add_argument("--sets", nargs="+", help="some sets of the task instead of all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="quality runs at a time, one thread each")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    root = data_root(options.data)
    options.data = str(root)
    options.sets = options.sets or list(KINDS[options.task].sets)
    if unknown := set(options.sets) - KINDS[options.task].sets.keys():
        parser.error(f"{options.task} has the sets {', '.join(KINDS[options.task].sets)}, not {', '.join(unknown)}")
    quiet()
    {"quality": quality, "speed": speed}[options.what](options, root)


if __name__ == "__main__":
    sys.exit(main())
