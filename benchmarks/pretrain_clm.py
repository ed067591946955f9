"""Causal language modelling, GPT-mini from random weights: tokens/s and memory beside the Trainer and a bare loop.

    python -m benchmarks.pretrain clm speed      tokens/s at 50k and at 8k tokens of vocabulary
    python -m benchmarks.pretrain clm memory     peak memory of a training step, at both

The Trainer trains `AutoModelForCausalLM` on `group_texts` blocks, all documents one after another; the bare loop is
plain torch in the way of nanoGPT (`benchmarks/bare_gpt.py`): random blocks of a memory-mapped file. Ours packs whole
pieces of documents, none of which sees another. The same text, tokenizer, shape, tied embeddings, batch of as many
tokens, AdamW and schedule; each run in a process of its own. Seconds are CPU seconds of the training loop.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.bare_gpt import train_bare, write_tokens
from benchmarks.corpora import CORPORA, Corpus, documents_of, make_corpus, shuffled, train_byte_level
from benchmarks.measure import fresh, interleaved, median_ratio, native_bf16, precision_note, write_results
from benchmarks.peer_pretraining import train_causal
from benchmarks.pretraining import Recipe, Run, gpt
from llm_arch.cli.quiet import quiet

NAMES = ("ours", "Trainer", "bare loop")
TARGETS = {("Trainer", True): 1.15, ("Trainer", False): 1.05, ("bare loop", True): 0.97, ("bare loop", False): 0.97}
LARGE = 30_000  # vocabularies from here on count as large

Found = dict[int, dict[str, list[Run]]]


def run(
    name: str, corpus: Corpus, config: dict[str, Any], recipe: Recipe, folder: Path, threads: int, memory: bool
) -> Run:
    """One run of one side, in a process of its own."""
    quiet()
    torch.set_num_threads(threads)
    if name == "Trainer":
        return train_causal("blocks", corpus.train, corpus.tokenizer, config, recipe, memory=memory)
    if name == "bare loop":
        tokens = write_tokens(corpus.train, corpus.tokenizer, folder / "tokens.bin")
        return train_bare(tokens, config, recipe, memory=memory)
    from benchmarks.own_pretraining import CAUSAL, train_own

    return train_own(CAUSAL, corpus, config, recipe, folder / "cache", memory=memory)


def write_speed(found: Found, options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| vocabulary | | tokens/s | ours / it | target |", "|---|---|---|---|---|"]
    for vocabulary, runs in found.items():
        rates = {name: [r.rate for r in some] for name, some in runs.items()}
        for name in NAMES:
            against = median_ratio(rates["ours"], rates[name]) if name != "ours" else ""
            target = TARGETS.get((name, vocabulary >= LARGE), "")
            lines.append(f"| {vocabulary:,} | {name} | {median(rates[name]):,.0f} | {against} | {target} |")
    lines += ["", f"{options.steps} steps, {_setting(options)} Medians of {len(options.seeds)} interleaved runs."]
    _write("pretrain_clm_speed", found, lines, options)


def write_memory(found: Found, options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| vocabulary | | peak, MiB | ours / it |", "|---|---|---|---|"]
    for vocabulary, runs in found.items():
        peaks = {name: [r.peak_mib or 0.0 for r in some] for name, some in runs.items()}
        for name in NAMES:
            against = median_ratio(peaks["ours"], peaks[name]) if name != "ours" else ""
            lines.append(f"| {vocabulary:,} | {name} | {median(peaks[name]):,.0f} | {against} |")
    lines += [
        "",
        f"{options.steps} steps, {_setting(options)} The peak is the largest resident set during the training loop "
        "(VmHWM, reset before) less what was resident once libraries, data and model were there and a step on one "
        "sequence was done: gradients, the optimizer's state, activations and logits. Ours keeps freed memory for "
        "itself, as it does by default. Target: half the Trainer's at the large vocabulary.",
    ]
    _write("pretrain_clm_memory", found, lines, options)


def _setting(options: argparse.Namespace) -> str:
    return (
        f"{options.corpus}, GPT-2 shape of {options.layers} × {options.width}, {options.heads} heads, no dropout, "
        f"sequences of {options.length}, batches of {options.batch_tokens:,} tokens, {options.threads} thread, "
        f"{precision_note()}, each run in a new process after a warm-up step."
    )


def _write(name: str, found: Found, lines: list[str], options: argparse.Namespace) -> None:
    runs = {v: {name: [r.summary() for r in some] for name, some in of.items()} for v, of in found.items()}
    write_results(name, {"runs": runs, "options": vars(options)}, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def measure(options: argparse.Namespace) -> None:
    """All sides at every vocabulary, written after each round."""
    memory = options.what == "memory"
    recipe = Recipe(options.batch_tokens, options.length, options.learning_rate, steps=options.steps)
    recipe = replace(recipe, bf16=native_bf16())
    found: Found = {}
    texts = shuffled(documents_of(options.corpus, options.data))
    with tempfile.TemporaryDirectory() as scratch:
        for vocabulary in options.vocabularies:
            folder = Path(scratch) / str(vocabulary)
            tokenizer = train_byte_level(texts[-options.tokenizer_documents :], vocabulary, folder / "tokenizer")
            # Twice what is trained on, so that no side runs out of text.
            corpus = make_corpus(texts, tokenizer, 2 * options.steps * options.batch_tokens, folder)
            config = gpt(vocabulary, options.length, layers=options.layers, width=options.width, heads=options.heads)
            found[vocabulary] = defaultdict(list)
            for name, seed in interleaved(NAMES, options.seeds):
                seeded = replace(recipe, seed=seed)
                done = fresh(run, name, corpus, config, seeded, folder, options.threads, memory)
                print(f"{vocabulary:,}, {name}: {done.rate:,.0f} tokens/s, {done.peak_mib} MiB", flush=True)
                found[vocabulary][name].append(done)
                if len({len(found[vocabulary][one]) for one in NAMES}) == 1:
                    (write_memory if memory else write_speed)(found, options)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain clm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[50257, 8192])
    parser.add_argument("--tokenizer-documents", type=int, default=2000, help="documents to train the tokenizer on")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, help="default: 16 to time, 3 to measure memory")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run of each side a seed")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.steps = options.steps or (3 if options.what == "memory" else 16)
    torch.set_num_threads(options.threads)
    measure(options)


if __name__ == "__main__":
    main()
