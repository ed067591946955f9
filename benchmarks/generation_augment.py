"""Eight rows a class of Banking77, with and without augmentation, for as many steps.

    python -m benchmarks.generation augment --data DIR [--seeds 0 1 2 3 4] [--copies 3] [--steps 200]

For each seed, eight training rows of each of the 77 intents are drawn. MiniLM-L6 is fine-tuned on them alone, and on
them together with rows that word-level edits made of them (EDA), near-duplicates left out; both for as many steps of 32
rows, with the package's defaults, and measured on the official test rows. The gain is that of pairs of equal seeds,
with a 95 % interval by Student's t.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.measure import confidence_interval, fresh, precision_note, write_results
from benchmarks.peer_trainer import minilm_directory
from llm_arch import Task, Trainer
from llm_arch.augmentation import WordEdits, augment
from llm_arch.cli.quiet import quiet
from llm_arch.data import TextClassificationData
from llm_arch.heads.classification import SequenceClassification

PER_CLASS = 8


def few(rows: Sequence[Row], seed: int) -> list[Row]:
    """Eight rows of each label."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    draw = random.Random(seed)
    return [row for label in sorted(by_label) for row in draw.sample(by_label[label], PER_CLASS)]


def run(root: str, seed: int, copies: int, steps: int) -> dict[str, Any]:
    """Accuracy with so many copies of each row, none for 0."""
    quiet()
    torch.set_num_threads(1)
    splits = load("banking77", Path(root))
    rows = few(splits["train"], seed)
    made: list[Row] = []
    if copies:
        made = augment(rows, WordEdits(), copies=copies, seed=seed, near_duplicates=0.9).new
    with tempfile.TemporaryDirectory() as scratch:
        kept = [{"text": row["text"], "label": row["label"]} for row in [*rows, *made]]
        files = [str(write_jsonl(some, Path(scratch) / f"{i}.jsonl")) for i, some in enumerate((kept, splits["test"]))]
        L.seed_everything(seed, verbose=False)
        data = TextClassificationData(
            files[0],
            test=files[1],
            tokenizer=str(minilm_directory()),
            validation_fraction=0.0,
            cache_dir=scratch,
        )
        task = Task(str(minilm_directory()), SequenceClassification, data.label_space)
        trainer = Trainer(
            max_epochs=-1,
            max_steps=steps,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(task, datamodule=data)
        found = trainer.test(task, datamodule=data, verbose=False)[0]
    return {"seed": seed, "copies": copies, "rows": len(kept), "accuracy": float(found["test/accuracy"])}


def write(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    by_arm = {copies: [r for r in runs if r["copies"] == copies] for copies in (0, options.copies)}
    pairs = list(zip(by_arm[0], by_arm[options.copies], strict=False))
    if not pairs:
        return
    gains = [b["accuracy"] - a["accuracy"] for a, b in pairs]
    lines = ["| | rows | accuracy by seed | accuracy |", "|---|---|---|---|"]
    for name, arm in (("8 rows a class", by_arm[0]), ("with word edits", by_arm[options.copies])):
        scores = [one["accuracy"] for one in arm]
        rows = round(mean(one["rows"] for one in arm))
        lines.append(f"| {name} | {rows:,} | {', '.join(f'{s:.3f}' for s in scores)} | {mean(scores):.3f} |")
    interval = "" if len(gains) < 2 else " ({:+.3f} to {:+.3f})".format(*confidence_interval(gains))
    lines += [
        "",
        f"Gain {mean(gains):+.3f}{interval}, mean of {len(gains)} seeds with a 95 % interval. Banking77, official test "
        f"rows, MiniLM-L6, {options.steps} steps of 32 rows each, {precision_note()}.",
    ]
    payload = {"runs": runs, "gains": gains, "copies": options.copies, "steps": options.steps}
    write_results("generation_augment", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.generation augment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--copies", type=int, default=3, help="new rows tried for each row")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        for copies in (0, options.copies):
            runs.append(fresh(run, str(root), seed, copies, options.steps))
            print(json.dumps(runs[-1]), flush=True)
        write(runs, options)


if __name__ == "__main__":
    sys.exit(main())
