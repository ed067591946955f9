"""Texts continued in batches of like length, as ours does, against calling `generate` row by row.

    python -m benchmarks.generation throughput [--rows 64] [--new-tokens 48] [--repeats 3]

A decoder of GPT-mini's shape with random weights (what it says plays no part in how long it takes) goes on with prompts
cut out of the standard library's documentation. The peer is transformers' own model with the same weights, called as
most code calls it: a prompt at a time. Greedy, key–value cache on, nothing ends a text early. Tokens per CPU second of
one thread; the share of prompts for which both wrote the same tokens is reported too.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import interleave, median_ratio, write_results
from llm_arch import Task
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.cli.quiet import quiet
from llm_arch.corpus.documents import documents
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.inference import save
from llm_arch.inference.generator import Generator

SHAPE = {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 512}
VOCABULARY = 8192


def prompts_of(rows: int) -> list[str]:
    """Beginnings of documents, from 5 to 80 words."""
    chosen = random.Random(0)
    texts = [document.text.split() for document in documents(["stdlib:docs"]) if len(document.text.split()) > 100]
    return [" ".join(words[: chosen.randint(5, 80)]) for words in chosen.choices(texts, k=rows)]


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.generation throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prompts = prompts_of(options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "tokenizer"
        texts = (document.text for document in documents(["stdlib:docs"]))
        train_tokenizer(texts, "bpe", VOCABULARY, progress=False).save_pretrained(place)
        data = NextTokenData(tokenizer=str(place), max_length=SHAPE["n_positions"] - options.new_tokens)
        task = Task(
            Pretrained(config={"model_type": "gpt2", **SHAPE}),
            LanguageModel,
            data.label_space,
            vocabulary=data.vocabulary,
        )
        generator = Generator(save(task, data, Path(scratch) / "model"))
        tokenizer = generator.model.data.tokenizer
        peer = GPT2LMHeadModel(GPT2Config(**SHAPE, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None))
        peer.transformer.load_state_dict(generator.model.backbone.model.state_dict())  # type: ignore[operator, union-attr]
        peer.eval()
        written: dict[str, list[str]] = {}

        def ours() -> float:
            before = time.process_time()
            written["ours"] = generator(
                prompts,
                max_new_tokens=options.new_tokens,
                min_new_tokens=options.new_tokens,
                batch_size=options.batch_size,
            )
            return time.process_time() - before

        def rows() -> float:
            before = time.process_time()
            out = []
            with torch.inference_mode():
                for prompt in prompts:
                    encoded = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                    ids = torch.tensor([[tokenizer.bos_token_id, *encoded]])
                    made = peer.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=options.new_tokens,
                        min_new_tokens=options.new_tokens,
                        eos_token_id=tokenizer.eos_token_id,
                        pad_token_id=tokenizer.pad_token_id,
                        do_sample=False,
                    )
                    out.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
            written["rows"] = out
            return time.process_time() - before

        for warm in (ours, rows):
            warm()
        runs: dict[str, Any] = {"ours": partial(ours), "rows": partial(rows)}
        seconds = interleave(runs, options.repeats)
    tokens = options.rows * options.new_tokens
    same = sum(a == b for a, b in zip(written["ours"], written["rows"], strict=True)) / options.rows
    ratio = median_ratio(seconds["rows"], seconds["ours"])
    lines = [
        "| | tokens/s | ours / row by row | same text |",
        "|---|---|---|---|",
        f"| ours, batches of {options.batch_size} | {tokens / median(seconds['ours']):,.0f} | {ratio} | {same:.0%} |",
        f"| `generate`, row by row | {tokens / median(seconds['rows']):,.0f} | | |",
        "",
        f"{options.rows} prompts of 5 to 80 words, {options.new_tokens} new tokens each, greedy; GPT-2 of "
        f"{SHAPE['n_layer']} layers, width {SHAPE['n_embd']}, {VOCABULARY:,} tokens, random weights, fp32; "
        f"{options.repeats} interleaved repeats, CPU seconds of one thread, medians with least and greatest.",
    ]
    payload = {"cpu_seconds": seconds, "same": same, **vars(options)}
    write_results("generation_throughput", payload, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
