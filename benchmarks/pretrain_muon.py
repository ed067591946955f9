"""Muon against AdamW on GPT-mini: steps and CPU seconds to the same loss.

    python -m benchmarks.pretrain muon

Both with the learning rate of a small grid that is best on held-out documents, tuned over the full number of steps, and
otherwise alike: linear warm-up over a tenth and decay to 0, weight decay, AdamW's betas, clipping, batches, order. Then
AdamW trains the full number of steps, and Muon several shares of it, each a run of its own with its own decay. Compared
is the loss on further documents, which nothing was tuned on.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.corpora import CORPORA, Corpus, documents_of, make_corpus, shuffled, train_byte_level
from benchmarks.measure import fresh, interleaved, native_bf16, precision_note, write_results
from benchmarks.pretraining import Recipe, Run, gpt
from llm_arch.cli.quiet import quiet

TARGET = 1.3
Trial = tuple[str, float, int, int]  # optimizer, learning rate, steps, seed


def run(trial: Trial, corpus: Corpus, options: argparse.Namespace, cache: Path) -> Run:
    """One training run, in a process of its own."""
    from benchmarks.own_pretraining import CAUSAL, optimizer_named, train_own

    quiet()
    torch.set_num_threads(options.threads)
    name, rate, steps, seed = trial
    config = gpt(options.vocabulary, options.length, layers=options.layers, width=options.width, heads=options.heads)
    recipe = Recipe(options.batch_tokens, options.length, steps=steps, seed=seed, bf16=native_bf16())
    optimizer = optimizer_named(name, rate, options.weight_decay)
    return train_own(CAUSAL, corpus, config, recipe, cache, held_out=("validation", "test"), optimizer=optimizer)


def steps_to(loss: float, points: Sequence[tuple[float, float]]) -> float | None:
    """How many steps reach a loss, between the measured numbers by a line over log steps; None when none does.

    Args:
        loss: the loss to reach.
        points: steps and the loss after them, by steps.
    """
    before: tuple[float, float] | None = None
    for steps, found in points:
        if found <= loss:
            if before is None:
                return steps
            share = (before[1] - loss) / (before[1] - found)
            return math.exp(math.log(before[0]) + share * (math.log(steps) - math.log(before[0])))
        before = steps, found
    return None


def tune(corpus: Corpus, options: argparse.Namespace, cache: Path) -> dict[str, dict[float, float]]:
    """The validation loss of every optimizer at every rate of its grid, some at a time."""
    grids = {"adamw": options.adamw_rates, "muon": options.muon_rates}
    trials: list[Trial] = [(name, rate, options.steps, 0) for name, grid in grids.items() for rate in grid]
    found: dict[str, dict[float, float]] = {name: {} for name in grids}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = [pool.submit(run, trial, corpus, options, cache) for trial in trials]
        for (name, rate, _, _), job in zip(trials, jobs, strict=True):
            found[name][rate] = job.result().held_out or math.inf
            print(f"tuning: {name} at {rate:g}: {found[name][rate]:.4f}", flush=True)
    return found


def write(tuned: dict[str, dict[float, float]], found: dict[str, list[Run]], options: argparse.Namespace) -> None:
    """Results as json and table."""
    loss = {name: mean(r.notes["test/loss"] for r in runs) for name, runs in found.items()}
    steps = {name: len(runs[0].predicted) for name, runs in found.items()}
    cost = {name: median(r.cpu_seconds / len(r.predicted) for r in runs) for name, runs in found.items()}
    target = loss["adamw"]
    points = sorted((float(steps[name]), loss[name]) for name in found if name != "adamw")
    needed = steps_to(target, points)
    lines = ["| optimizer | steps | loss | CPU seconds | CPU ms a step |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        seconds = median(r.cpu_seconds for r in runs)
        cells = f"{steps[name]} | {loss[name]:.4f} | {seconds:,.0f} | {1000 * cost[name]:,.0f}"
        lines.append(f"| {name.partition(' ')[0]} | {cells} |")
    step = median(cost[name] for name in found if name != "adamw")
    if needed is None:
        lines += ["", f"Muon does not reach AdamW's loss of {target:.4f} within {points[-1][0]:.0f} steps."]
    else:
        bound = "at most " if needed == points[0][0] else ""
        faster = steps["adamw"] * cost["adamw"] / (needed * step)
        lines += [
            "",
            f"To AdamW's loss of {target:.4f}, Muon needs {bound}{needed:.0f} steps (between two runs: a line over log "
            f"steps), {steps['adamw'] / needed:.2f} times fewer, each taking {step / cost['adamw']:.2f} times as long: "
            f"**{faster:.2f} times faster** (target {TARGET}).",
        ]
    for name, grid in tuned.items():
        best = min(grid, key=lambda rate: grid[rate])
        edge = ", the edge of the grid" if best in (min(grid), max(grid)) and len(grid) > 1 else ""
        rates = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in grid.items())
        lines += ["", f"Learning rate of {name}: {best:g}{edge}, by validation loss ({rates})."]
    lines += [
        "",
        f"{options.corpus}, vocabulary {options.vocabulary:,}, {options.layers} × {options.width}, sequences of "
        f"{options.length}, batches of {options.batch_tokens:,} tokens, weight decay {options.weight_decay}, "
        f"{len(options.seeds)} seeds, {options.threads} thread, {precision_note()}.",
    ]
    payload = {"tuned": tuned, "runs": {name: [r.summary() for r in runs] for name, runs in found.items()}}
    options_ = {"options": vars(options), "steps_needed": needed}
    write_results("pretrain_muon", payload | options_, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse, tune, run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain muon", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tokenizer-documents", type=int, default=2000, help="documents to train the tokenizer on")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=300, help="AdamW's")
    parser.add_argument("--tokens", type=int, help="of the corpus (default: every token is seen once)")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.65, 0.77, 1.0], help="of them, for Muon")
    parser.add_argument("--adamw-rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--muon-rates", nargs="+", type=float, default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--processes", type=int, default=2, help="tuning runs at a time; timed runs are alone")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    texts = shuffled(documents_of(options.corpus, options.data))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = train_byte_level(texts[-options.tokenizer_documents :], options.vocabulary, folder / "tokenizer")
        corpus = make_corpus(texts, tokenizer, options.tokens or options.steps * options.batch_tokens, folder)
        tuned = tune(corpus, options, folder / "cache")
        best = {name: min(grid, key=lambda rate: grid[rate]) for name, grid in tuned.items()}
        lengths = {"adamw": options.steps, **{f"muon {s:g}": round(s * options.steps) for s in options.shares}}
        found: dict[str, list[Run]] = {name: [] for name in lengths}
        for name, seed in interleaved(list(lengths), options.seeds):
            optimizer = name.partition(" ")[0]
            trial: Any = optimizer, best[optimizer], lengths[name], seed
            found[name].append(fresh(run, trial, corpus, options, folder / "cache"))
            print(f"{name}, seed {seed}: {found[name][-1].notes['test/loss']:.4f}", flush=True)
            if len({len(runs) for runs in found.values()}) == 1:
                write(tuned, found, options)


if __name__ == "__main__":
    main()
