"""Characters of Shakespeare: the loss in the budget of nanoGPT's recipe for a CPU, and after 30 CPU minutes.

    python -m benchmarks.pretrain shakespeare budget --data DIR     its tokens and parameters, 3 seeds
    python -m benchmarks.pretrain shakespeare free --data DIR       any size, 30 minutes of CPU time

nanoGPT's README trains 4 layers of 128 (0.80 M parameters) for 2,000 steps of 12 blocks of 64 characters, and gives a
validation loss of 1.88, an estimate on random blocks. Here the loss is over the whole validation text, the last tenth
as there, in consecutive windows of that length: every character is predicted once, from those before it in its window.
`--part dev` measures on the last tenth of the training text instead, which is how the defaults were chosen.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.corpora import Corpus, character_tokenizer
from benchmarks.evaluation_data import data_root, load, write_jsonl
from benchmarks.measure import mean_std, native_bf16, precision_note, write_results
from benchmarks.pretraining import Recipe, Run, gpt
from llm_arch.cli.quiet import quiet

CHARACTERS = 65
TOKENS, TARGET, README = 2000 * 12 * 64, 1.80, 1.88
_CALIBRATION_STEPS = 20
# The loss of seed 0 on the last tenth of the training text (`--part dev`), all else as the defaults of `budget`.
TRIED: tuple[dict[str, Any], ...] = (
    {"shape": "gpt2", "optimizer": "muon", "learning_rate": 4e-3, "loss": 1.5674},
    {"shape": "gpt2", "optimizer": "muon", "learning_rate": 8e-3, "loss": 1.5659},
    {"shape": "llama", "optimizer": "adamw", "learning_rate": 4e-3, "loss": 1.6185},
    {"shape": "llama", "optimizer": "muon", "learning_rate": 6e-3, "loss": 1.5262},
)
# The same for `free` in fewer minutes, with 6 layers and Muon.
TRIED_FREE: tuple[dict[str, Any], ...] = (
    {"minutes": 7, "shape": "gpt2", "width": 256, "learning_rate": 4e-3, "dropout": 0.1, "loss": 1.7616},
    {"minutes": 7, "shape": "llama", "width": 256, "learning_rate": 4e-3, "dropout": 0.1, "loss": 1.5145},
    {"minutes": 7, "shape": "llama", "width": 256, "learning_rate": 4e-3, "dropout": 0.0, "loss": 1.4926},
    {"minutes": 7, "shape": "llama", "width": 256, "learning_rate": 4e-3, "dropout": 0.2, "loss": 1.5114},
    {"minutes": 7, "shape": "llama", "width": 192, "learning_rate": 6e-3, "dropout": 0.1, "loss": 1.4849},
    {"minutes": 7, "shape": "llama", "width": 320, "learning_rate": 4e-3, "dropout": 0.1, "loss": 1.5346},
    {"minutes": 10, "shape": "llama", "width": 256, "learning_rate": 6e-3, "dropout": 0.1, "loss": 1.4353},
)


def corpus_of(data: str | None, part: str, folder: Path) -> Corpus:
    """The text cut as nanoGPT cuts it: the first nine tenths to train on, the last to measure on.

    Args:
        data: the folder of the evaluation sets.
        part: "val", or "dev" for the last tenth of the training text.
        folder: where the files go.
    """
    text = "\n".join(row["text"] for row in load("tiny_shakespeare", data_root(data))["train"])
    tokenizer = character_tokenizer(text, folder / "tokenizer")
    for _ in range(1 if part == "val" else 2):
        train, rest = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
        text = train
    files = [
        write_jsonl([{"text": text}], folder / name) for name, text in (("train.jsonl", train), ("rest.jsonl", rest))
    ]
    return Corpus(files[0], files[1], files[1], tokenizer, len(train))


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """The model's configuration; the Llama shape has about as many parameters as the GPT-2 shape of the same size."""
    width, vocabulary = options.width, CHARACTERS + 1  # one for the unknown
    if options.shape == "gpt2":
        config = gpt(vocabulary, options.length, layers=options.layers, width=width, heads=options.heads)
        return config | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout)
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "max_position_embeddings": options.length,
        "hidden_size": width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "intermediate_size": 8 * width // 3 // 8 * 8,
        "tie_word_embeddings": True,
        "attention_dropout": options.dropout,  # it has no other
        "bos_token_id": None,
        "eos_token_id": None,
    }


def run(corpus: Corpus, options: argparse.Namespace, seed: int, cache: Path) -> Run:
    """One training run, in a process of its own."""
    from benchmarks.own_pretraining import CAUSAL, SCHEDULES, optimizer_named, train_own

    quiet()
    torch.set_num_threads(options.threads)
    recipe = Recipe(options.batch_tokens, options.length, steps=options.steps, seed=seed, bf16=native_bf16())
    how: dict[str, Any] = {
        "optimizer": optimizer_named(options.optimizer, options.learning_rate, options.weight_decay),
        "schedule": SCHEDULES[options.schedule](options.warmup),
    }
    used = 0.0
    if options.minutes:
        first = train_own(CAUSAL, corpus, shape(options), replace(recipe, steps=_CALIBRATION_STEPS), cache, **how)
        used = first.cpu_seconds
        left = 60 * options.minutes - used
        recipe = replace(recipe, steps=max(1, int(left * _CALIBRATION_STEPS / first.cpu_seconds)))
    done = train_own(CAUSAL, corpus, shape(options), recipe, cache, held_out=("validation",), **how)
    return replace(done, notes={**done.notes, "calibration": used})


def write(found: dict[int, Run], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| seed | loss | bits a character | steps | characters trained on | parameters | CPU minutes |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for seed, done in sorted(found.items()):
        loss, minutes = done.held_out or math.nan, (done.cpu_seconds + done.notes["calibration"]) / 60
        lines.append(
            f"| {seed} | {loss:.4f} | {loss / math.log(2):.4f} | {len(done.predicted)} | {sum(done.predicted):,} "
            f"| {done.notes['parameters'] / 1e6:.3f} M | {minutes:.1f} |"
        )
    losses = [done.held_out or math.nan for done in found.values()]
    context = f"windows of {options.length}"
    target = f"; target {TARGET:.2f}, nanoGPT's README {README:.2f}" if options.what == "budget" else ""
    where = "the last tenth of the text" if options.part == "val" else "the last tenth of the training text"
    lines += [
        "",
        f"Loss {mean_std(losses)}{target}; over {where}, in consecutive {context}. {options.shape} shape, "
        f"{options.layers} × {options.width}, dropout {options.dropout}, {options.optimizer} at "
        f"{options.learning_rate:g}, weight decay {options.weight_decay}, schedule {options.schedule} with a warm-up "
        f"of {options.warmup:g}, batches of {options.batch_tokens} characters, {options.threads} thread, "
        f"{precision_note()}. The steps in which a run of given minutes is timed beforehand count among them.",
    ]
    tried = TRIED if options.what == "budget" else TRIED_FREE
    where = "Tried beforehand, seed 0, loss on the last tenth of the training text, all else as the defaults:"
    lines += ["", where, ""]
    lines += [f"| {' | '.join(name.replace('_', ' ') for name in tried[0])} |", "|---" * len(tried[0]) + "|"]
    lines += [f"| {' | '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in t.values())} |" for t in tried]
    name = f"pretrain_shakespeare_{options.what}" + ("" if options.part == "val" else "_dev")
    payload = {
        "runs": {str(seed): done.summary() for seed, done in found.items()},
        "options": vars(options),
        "tried": tried,
    }
    write_results(name, payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, writing results after every seed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain shakespeare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("budget", "free"))
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--part", choices=("val", "dev"), default="val")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; free: 0")
    parser.add_argument("--shape", choices=("gpt2", "llama"), default="llama")
    parser.add_argument("--layers", type=int, help="default: 4; free: 6")
    parser.add_argument("--width", type=int, help="default: 128; free: 256")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, help="default: 64; free: 256")
    parser.add_argument("--dropout", type=float, help="default: 0; free: 0.1")
    parser.add_argument("--batch-tokens", type=int, help="default: 768; free: 4096")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--learning-rate", type=float, default=6e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--schedule", choices=("linear", "wsd"), default="linear")
    parser.add_argument("--warmup", type=float, default=0.05)
    parser.add_argument("--minutes", type=float, default=30.0, help="CPU minutes of free")
    parser.add_argument("--steps", type=int, help="instead of what the budget gives")
    parser.add_argument("--processes", type=int, default=1, help="seeds at a time")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    budget = options.what == "budget"
    defaults: dict[str, Any] = {"layers": (4, 6), "width": (128, 256), "length": (64, 256), "dropout": (0.0, 0.1)}
    for name, values in {**defaults, "batch_tokens": (768, 4096), "seeds": ([0, 1, 2], [0])}.items():
        if getattr(options, name) is None:
            setattr(options, name, values[0 if budget else 1])
    if budget:
        options.minutes, options.steps = None, options.steps or TOKENS // options.batch_tokens
    torch.set_num_threads(options.threads)
    found: dict[int, Run] = {}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = corpus_of(options.data, options.part, Path(scratch))
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            jobs = {pool.submit(run, corpus, options, seed, Path(scratch) / "cache"): seed for seed in options.seeds}
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
                write(found, options)


if __name__ == "__main__":
    main()
