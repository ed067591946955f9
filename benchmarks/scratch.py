"""Backbones without pretraining, on SST-2 and TREC-6: accuracy over seeds, and rows a second in training and use.

    python -m benchmarks.scratch --data DIR

Each is trained as its overlay in `configs/backbone/` says (learning rate, epochs), on all training rows, and its last
state is measured on the official test split. Rows a second are of CPU time on one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
import yaml

from benchmarks.evaluation_data import data_root, load, write_jsonl
from benchmarks.finetune import LoopClock, module
from benchmarks.measure import mean_std, write_results
from llm_arch import Task, Trainer
from llm_arch.cli.configs import find
from llm_arch.cli.quiet import quiet
from llm_arch.heads.classification import SequenceClassification

BACKBONES = ("textcnn", "bilstm", "cnn")
SETS = ("sst2", "trec")


def run(backbone: str, name: str, root: Path, seed: int) -> dict[str, Any]:
    """Train one backbone on one set with one seed, and test it."""
    quiet()
    torch.set_num_threads(1)
    config = yaml.safe_load(find(f"backbone/{backbone}").read_text(encoding="utf-8"))
    part = config["model"]["backbone"]
    module_name, _, class_name = part["class_path"].rpartition(".")
    rows = load(name, root)
    L.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = module(name, rows["train"], folder, test=str(write_jsonl(rows["test"], folder / "test.jsonl")))
        task = Task(
            getattr(import_module(module_name), class_name)(**part["init_args"]),
            SequenceClassification,
            data.label_space,
            learning_rate=config["model"]["learning_rate"],
        )
        clock = LoopClock()
        trainer = Trainer(
            max_epochs=config["trainer"]["max_epochs"],
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[clock],
        )
        trainer.fit(task, datamodule=data)
        before = time.process_time()
        found = trainer.test(task, datamodule=data, verbose=False)[0]
        tested = time.process_time() - before
    return {
        "backbone": backbone,
        "set": name,
        "seed": seed,
        "accuracy": float(found["test/accuracy"]),
        "parameters": sum(p.numel() for p in task.parameters()),
        "epochs": trainer.max_epochs,
        "train_rows_per_second": task.trained_rows / clock.cpu_seconds,
        "test_rows_per_second": len(rows["test"]) / tested,
    }


def write(runs: list[dict[str, Any]], data: str) -> None:
    """Results so far as json and table."""
    lines = [
        "| backbone | set | accuracy by seed | mean ± std | parameters | epochs | training, rows/s | test, rows/s |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for backbone, name in sorted({(r["backbone"], r["set"]) for r in runs}):
        here = sorted((r for r in runs if (r["backbone"], r["set"]) == (backbone, name)), key=lambda r: r["seed"])
        scores = [r["accuracy"] for r in here]
        speed = [median(r[f"{stage}_rows_per_second"] for r in here) for stage in ("train", "test")]
        lines.append(
            f"| {backbone} | {name} | {', '.join(f'{a:.3f}' for a in scores)} | {mean_std(scores)} "
            f"| {here[0]['parameters'] / 1e6:.1f} M | {here[0]['epochs']} | {speed[0]:,.0f} | {speed[1]:,.0f} |"
        )
    lines += [
        "",
        "From scratch, last state, official test split; rows per CPU second on one thread, medians over seeds.",
    ]
    write_results("scratch", {"runs": runs}, "\n".join(lines), data_directory=data)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    root = data_root(options.data)
    runs: list[dict[str, Any]] = []
    jobs = [(backbone, name, root, seed) for seed in options.seeds for backbone in options.backbones for name in SETS]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run, *job) for job in jobs]):
            runs.append(done.result())
            print(runs[-1], flush=True)
            write(runs, str(root))


if __name__ == "__main__":
    sys.exit(main())
