"""Masked language modelling, BERT-mini from random weights: tokens/s and loss beside the Trainer's two recipes.

    python -m benchmarks.pretrain mlm --seeds 0 1 2

The same documents twice: whole files, beside `group_texts` (all files one after another, in blocks); and each line a
document, beside `line_by_line` with batches of like lengths. All four train one pass over the same text with the same
tokenizer, shape, initialisation, masking rate, batch of about as many tokens, AdamW and schedule, each run in a process
of its own. Tokens are neither padding nor special tokens; seconds are CPU seconds of the training loop.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.corpora import CORPORA, Corpus, documents_of, make_corpus, shuffled, wordpiece_directory
from benchmarks.measure import fresh, interleaved, median_ratio, native_bf16, precision_note, write_results
from benchmarks.peer_pretraining import train_masked
from benchmarks.pretraining import BERT_MINI, Recipe, Run
from llm_arch.cli.quiet import quiet

PEER_OF = {"ours, files": "Trainer, blocks", "ours, lines": "Trainer, lines"}
TARGETS = {"ours, files": 2.0, "ours, lines": 2.5}


def run(
    name: str, corpus: Corpus, config: dict[str, Any], recipe: Recipe, cache: Path, options: argparse.Namespace
) -> Run:
    """One run of one side, in a process of its own."""
    from benchmarks.own_pretraining import MASKED, held_out_batches, train_own

    quiet()
    torch.set_num_threads(options.threads)
    if name.startswith("ours"):
        return train_own(MASKED, corpus, config, recipe, cache, held_out=("validation",))
    kind: Any = "blocks" if name.endswith("blocks") else "rows"
    batches = held_out_batches(corpus, recipe, cache)
    parts = options.accumulation if kind == "rows" else 1
    return train_masked(kind, corpus.train, corpus.tokenizer, config, recipe, batches, accumulation=parts)


def write(found: dict[str, list[Run]], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| | tokens/s | ours / it | target | loss, last 10 % | ours over it | held-out loss | ours over it |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for ours, peer in PEER_OF.items():
        own, other = found[ours], found[peer]
        speed = median_ratio([r.rate for r in own], [r.rate for r in other])
        lines.append(f"| {ours} | {median(r.rate for r in own):,.0f} | | | {last(own):.3f} | | {held_out(own):.3f} | |")
        over = percent(last(own) / last(other)), percent(held_out(own) / held_out(other))
        lines.append(
            f"| {peer} | {median(r.rate for r in other):,.0f} | {speed} | {TARGETS[ours]} | {last(other):.3f} "
            f"| {over[0]} | {held_out(other):.3f} | {over[1]} |"
        )
    lines += [
        "",
        f"{options.corpus}, {found['ours, files'][0].tokens:,} tokens × one pass, BERT-mini (4 × 256, 30,522 tokens, "
        f"dropout {options.dropout}), sequences of at most {options.length}, batches of about {options.batch_tokens:,} "
        f"tokens, 15 % masked, AdamW with a peak rate of {options.learning_rate:g}, linear warm-up over a tenth and "
        f"decay, {options.threads} thread, {len(found['ours, files'])} seeds, interleaved, each run in a new process "
        "after a warm-up step. Medians with least and greatest; losses are means over the seeds. Precision: "
        f"{precision_note()}.",
        "",
        f"The Trainer computes its batches of lines in {options.accumulation} parts of like lengths: whole, they pad "
        "more, and those of the longest lines hold 11 GB of logits. In 8 parts they would pad 3 % less than in 4, but "
        "some parts of one-token lines would have no masked token, on which its loss is NaN.",
        "",
        "Which loss compares: for blocks that of training, as both come in random order (held-out pieces start with a "
        "special token, which blocks lack). For lines the held-out one, as the Trainer's batches of like lengths come "
        "sorted, longest first, within runs of many batches: its last tenth is of short lines. The held-out loss is "
        "that of both models on the same batches with the same masks.",
    ]
    payload = {"runs": {name: [r.summary() for r in runs] for name, runs in found.items()}, "options": vars(options)}
    write_results("pretrain_mlm", payload, "\n".join(lines), data_directory=options.data)


def last(runs: list[Run]) -> float:
    """The mean over the seeds of the loss of the last tenth."""
    return mean(run.last() for run in runs)


def held_out(runs: list[Run]) -> float:
    """The mean over the seeds of the held-out loss."""
    return mean(run.held_out or 0.0 for run in runs)


def percent(ratio: float) -> str:
    """How far from 1."""
    return f"{100 * (ratio - 1):+.2f} %"


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, writing results after every seed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain mlm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--tokens", type=int, default=600_000, help="tokens to train on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--accumulation", type=int, default=4, help="parts of the Trainer's batches of lines")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dropout = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    config = {**BERT_MINI, **dropout}
    recipe = Recipe(options.batch_tokens, options.length, options.learning_rate, bf16=native_bf16())
    found: dict[str, list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        texts, folder = shuffled(documents_of(options.corpus, options.data)), Path(scratch)
        files = make_corpus(texts, wordpiece_directory(), options.tokens, folder / "files")
        lines = make_corpus(texts, wordpiece_directory(), options.tokens, folder / "lines", unit="line")
        corpora = {"files": files, "blocks": files, "lines": lines}
        names = [name for pair in PEER_OF.items() for name in pair]
        for name, seed in interleaved(names, options.seeds):
            corpus, seeded = corpora[name.rpartition(" ")[2]], replace(recipe, seed=seed)
            done = fresh(run, name, corpus, config, seeded, folder / "cache", options)
            print(f"{name}, seed {seed}: {done.rate:,.0f} tokens/s, {done.last():.3f}, {done.held_out:.3f}", flush=True)
            found[name].append(done)
            if len({len(found[one]) for one in names}) == 1:
                write(found, options)


if __name__ == "__main__":
    main()
