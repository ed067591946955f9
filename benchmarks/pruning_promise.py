"""What structured pruning promises in time, and what is measured after.

    python -m benchmarks.pruning promise --data DIR --set sst2

Five targets, each pruned without training from the same dense model: what is promised is about time alone. Measured as
`benchmarks.compressed.speedups` does it: the models take turns, from text to prediction.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.compressed import SETS, compressed, dense, files, speedups
from benchmarks.evaluation_data import data_root, load
from benchmarks.measure import write_results
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.cli.quiet import quiet


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pruning promise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", help="folder to keep the models in (default: a temporary one)")
    parser.add_argument("--set", choices=SETS, default="sst2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=["1.5x", "2x", "3x", "4x", "5x"])
    parser.add_argument("--rows", type=int, default=100, help="test rows to time")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.models or scratch)
        models = {"dense": dense(options.set, root, options.seed, folder)}
        promised = {}
        for target in options.targets:
            models[target], record = compressed(
                models["dense"],
                folder / options.set / f"promise-{target}-{options.seed}",
                files(options.set, root, folder)["train"],
                partial(StructuredPruning, target, reconstruct=False),
                seed=options.seed,
                epochs=0,
            )
            promised[target] = record["pruning"]["promised"]["times"]
        times = speedups(models, load(options.set, root)["test"], count=options.rows, rounds=options.rounds)
    lines = ["| target | promised | measured | measured / promised |", "|---|---|---|---|"]
    for target, times_promised in promised.items():
        off = 100 * (times[target].median / times_promised - 1)
        lines.append(f"| {target} | {times_promised:.2f} | {times[target]} | {off:+.1f} % |")
    lines += [
        "",
        f"{options.set}, MiniLM, fp32, one thread, {options.rows} test rows one by one, each at its own length, "
        "tokenization included; CPU time, median of the rounds with least and greatest. The table of latencies was "
        "measured before, on the same machine.",
    ]
    payload = {"promised": promised, "measured": times, "options": vars(options) | {"models": None}}
    write_results("pruning_promise", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
