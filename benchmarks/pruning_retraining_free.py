"""Half of the multiply-accumulates of a fine-tuned MiniLM without any training: quality, and how long it takes.

python -m benchmarks.pruning retraining_free --data DIR --sets trec --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compressed import compressed, counts, dense, files, over_sets, paired_bootstrap, score, speedups
from benchmarks.evaluation_data import load
from benchmarks.measure import write_results
from llm_arch.callbacks.structured_pruning import StructuredPruning

ROWS = 512


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, writing results after every set."""
    over_sets("pruning retraining_free", __doc__, arguments, run, write, add=_options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="2x macs")


def run(name: str, root: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One set: all seeds."""
    rows = load(name, root)["test"]
    before, after, faster, records = [], [], [], []
    for seed in options.seeds:
        whole = dense(name, root, seed, folder)
        place, record = compressed(
            whole,
            folder / name / f"retraining-free-{options.target.replace(' ', '-')}-{seed}",
            files(name, root, folder)["train"],
            partial(StructuredPruning, options.target, rows=ROWS),
            seed=seed,
            epochs=0,
        )
        before.append(counts(whole, rows))
        after.append(counts(place, rows))
        faster.append(speedups({"dense": whole, "pruned": place}, rows, count=100, rounds=3)["pruned"])
        records.append(record)
        print(name, seed, score(before[-1]), score(after[-1]), faster[-1], record["cpu_seconds"], flush=True)
    return {
        "before": [score(one) for one in before],
        "after": [score(one) for one in after],
        "change": paired_bootstrap(before, after),
        "faster": faster,
        "records": records,
    }


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| set | dense, by seed | pruned | change in points | fewer MACs | times faster | CPU seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, one in found.items():
        change, low, high = (100 * value for value in one["change"])
        lines.append(
            f"| {name} | {', '.join(f'{s:.3f}' for s in one['before'])} "
            f"| {', '.join(f'{s:.3f}' for s in one['after'])} | {change:+.1f} ({low:+.1f} to {high:+.1f}) "
            f"| {', '.join(format(r['pruning']['promised']['times'], '.2f') for r in one['records'])} "
            f"| {', '.join(f'{ratio.median:.2f}' for ratio in one['faster'])} "
            f"| {', '.join(format(r['cpu_seconds'], '.0f') for r in one['records'])} |"
        )
    lines += [
        "",
        f"Fisher information and least squares on {ROWS} training rows, no step of training. Official test split; "
        "accuracy, for WNUT17 strict entity F1. Change: mean over the seeds, with its 95 % interval by a paired "
        "bootstrap over the test rows. MACs are those of the layers. Seconds are of all of it but loading and saving, "
        "one thread.",
    ]
    write_results("pruning_retraining_free", found, "\n".join(lines), data_directory=options.data)


if __name__ == "__main__":
    main()
