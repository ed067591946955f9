"""Training steps with batches filled to a round number of tokens and without, dense and pruned: CPU time.

    python -m benchmarks.pruning fillers --data DIR --models FOLDER

MiniLM is fine-tuned in half precision, as it is and with half of its multiply-accumulates pruned unevenly, each time in
a process of its own, as compiled kernels are kept by the process; with and without take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.compressed import SETS, files
from benchmarks.evaluation_data import data_root
from benchmarks.finetune import kind_of, minilm_directory
from benchmarks.measure import Spread, precision_note, write_results
from llm_arch import Task, Trainer, fillers
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.cli.quiet import quiet
from llm_arch.compression.structure import Structure

MODELS = ("dense", "pruned")
HEADS, NEURONS = (11, 9, 7, 5, 3, 1), (1504, 1104, 800, 504, 296, 104)  # of 12 and 1,536


class _Clock(Callback):
    """CPU time of every step; the first ones, in which memory is had and sizes are new, do not count."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.marks.append(time.process_time())


def steps(name: str, root: str, folder: str, model: str, filled: bool, skipped: int, count: int) -> float:
    """Milliseconds of a step, the mean over some, in a process of its own."""
    quiet()
    torch.set_num_threads(1)
    if not filled:
        fillers._STEP = 1
    L.seed_everything(0, verbose=False)
    kind, source = kind_of(name), files(name, Path(root), Path(folder))["train"]
    data = kind.data(source, tokenizer=str(minilm_directory()), validation_fraction=0, cache_dir=f"{folder}/cache")
    backbone = Pretrained(str(minilm_directory()))
    if model == "pruned":
        of = Structure.whole(backbone.model).of
        layers = tuple(range(of.layers))
        kept = [tuple(tuple(range(n)) for n in counts) for counts in (HEADS, NEURONS)]
        backbone.prune(Structure(layers, kept[0], kept[1], of))
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(
            max_steps=skipped + count,
            default_root_dir=scratch,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        run.fit(Task(backbone, kind.head, data.label_space), datamodule=data)
    return 1e3 * (clock.marks[-1] - clock.marks[skipped - 1]) / count


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pruning fillers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", help="folder to keep the tokenized rows in (default: a temporary one)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["trec", "wnut17"])
    parser.add_argument("--skipped", type=int, default=60, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    options.data = str(data_root(options.data))
    found: dict[str, Any] = {}
    lines = ["| set | model | ms a step | without fillers | times as fast |", "|---|---|---|---|---|"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        folder = options.models or scratch
        for name in options.sets:
            for model in MODELS:
                pairs = []
                for _ in range(options.rounds):
                    given = (steps, name, options.data, folder, model)
                    both = [pool.submit(*given, way, options.skipped, options.steps).result() for way in (True, False)]
                    pairs.append(both)
                    print(name, model, both, flush=True)
                ratios = [without / with_ for with_, without in pairs]
                ratio = Spread(median(ratios), min(ratios), max(ratios), len(ratios))
                found.setdefault(name, {})[model] = {"milliseconds": pairs, "ratio": ratio}
                with_, without = (median(column) for column in zip(*pairs, strict=True))
                lines.append(f"| {name} | {model} | {with_:.0f} | {without:.0f} | {ratio} |")
    lines += [
        "",
        f"CPU time of {options.steps} training steps after {options.skipped} others, one thread, {precision_note()}, "
        f"median of {options.rounds} rounds with least and greatest. Pruned: heads {list(HEADS)} and neurons "
        f"{list(NEURONS)} of MiniLM's 12 and 1,536.",
    ]
    write_results("pruning_fillers", found, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
