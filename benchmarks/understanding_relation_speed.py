"""Examples a second of relation extraction: training and prediction, one thread.

    python -m benchmarks.understanding relation_speed --data DIR [--rows 2000] [--repeats 3]

The stock Trainer has no such task (its sentence classifier reads no entity states), so ours stands alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch

from benchmarks.evaluation_data import SOURCES, data_root
from benchmarks.finetune import LoopClock
from benchmarks.measure import fresh, precision_note, write_results
from benchmarks.peer_trainer import minilm_directory
from benchmarks.understanding_relation import SET, config
from llm_arch import Task, Trainer
from llm_arch.cli.quiet import quiet
from llm_arch.data import RelationExtractionData
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.inference import predict


def run(root: str, rows: int) -> tuple[float, float]:
    """CPU seconds of an epoch on the first rows, and of predicting the test rows; both were tokenized before."""
    quiet()
    torch.set_num_threads(1)
    shipped = config()
    head = shipped["model"].get("head", {}).get("init_args", {})
    folder = Path(root) / SOURCES[SET].folder
    with tempfile.TemporaryDirectory() as scratch:
        blocks = (folder / SOURCES[SET].files["train"]).read_text(encoding="utf-8").split("\n\n")
        train = Path(scratch) / "train.txt"
        train.write_text("\n\n".join(blocks[:rows]) + "\n\n", encoding="utf-8")
        given: dict[str, Any] = {**shipped["data"]["init_args"], "validation_fraction": 0, "cache_dir": scratch}
        given |= {"train": str(train), "predict": str(folder / SOURCES[SET].files["test"])}
        L.seed_everything(0, verbose=False)
        data = RelationExtractionData(**given, tokenizer=str(minilm_directory()))
        task = Task(
            str(minilm_directory()), partial(RelationExtraction, **head), data.label_space, vocabulary=data.vocabulary
        )
        clock = LoopClock()
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_epochs=1, default_root_dir=scratch, callbacks=[clock], **options)
        trainer.fit(task, datamodule=data)
        data.split("predict")
        before = time.process_time()
        found = predict(trainer, task, data)
        seconds = time.process_time() - before
    assert len(found) == SOURCES[SET].rows["test"]
    return clock.cpu_seconds, seconds


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.understanding relation_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    root = str(data_root(options.data))
    timed = [fresh(run, root, options.rows) for _ in range(options.repeats)]
    rates = [
        [count / seconds for seconds in times]
        for count, times in zip((options.rows, SOURCES[SET].rows["test"]), zip(*timed, strict=True), strict=True)
    ]
    lines = ["| | examples/s |", "|---|---|"]
    for name, rate in zip(("training", "prediction"), rates, strict=True):
        lines.append(f"| {name} | {median(rate):.1f} ({min(rate):.1f}–{max(rate):.1f}) |")
    lines += [
        "",
        f"SemEval-2010 Task 8, the config's defaults: {options.rows:,} rows × 1 epoch, and prediction of the test rows "
        f"with the Trainer, tokenized before; examples per CPU second of one thread, {options.repeats} repeats, "
        f"{precision_note()}.",
    ]
    payload = {"cpu_seconds": timed, "rows": options.rows}
    write_results("understanding_relation_speed", payload, "\n".join(lines), data_directory=root)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
