"""BERT-base and GPT-2 with 124M parameters on a GPU: tokens/s, model FLOPs utilisation, and the Trainer beside.

    python -m benchmarks.pretrain gpu            on the GPU
    python -m benchmarks.pretrain gpu --tiny     two small models wherever it runs: says whether it works, no more

Documents of mixed lengths, the blocks between blank lines: ours packs them, the Trainer pads batches of like lengths,
computed in parts, since the longest would not fit into memory otherwise. Utilisation is the floating-point
operations the task needs (matrix products and attention within documents, forward and backward; output scores only
where a token is predicted) by what a product of large bf16 matrices reaches on the same device.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch

from benchmarks.corpora import CORPORA, Corpus, documents_of, make_corpus, shuffled, train_byte_level
from benchmarks.corpora import wordpiece_directory as wordpiece
from benchmarks.measure import fresh, interleaved, median_ratio, wait_for_device, write_results
from benchmarks.peer_pretraining import train_causal, train_masked
from benchmarks.pretraining import BERT_MINI, Recipe, Run, gpt
from llm_arch.cli.quiet import quiet

MODELS = ("bert-base", "gpt2-124m")
TARGETS = {"mfu": 0.45, "Trainer": 2.0}
_GEMM = 8192


def config_of(model: str, tiny: bool) -> dict[str, Any]:
    """The configuration of a model, or of a small one of its kind."""
    if model == "bert-base":
        large = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
        return BERT_MINI if tiny else {**BERT_MINI, **large}
    return gpt(2048, 1024) if tiny else gpt(50257, 1024, layers=12, width=768, heads=12)


class DeviceClock(L.Callback):
    """Wall-clock seconds and work of the steps after the first few, with the device waited for.

    Args:
        skip: steps that are not timed: kernels are chosen and compiled in them.
    """

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.lengths: list[torch.Tensor] = []
        self.predicted = 0
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock once warm, then note what each step does."""
        if batch_idx >= self.skip:
            self.lengths.append(batch.lengths)
            self.predicted += len(batch.labels["targets"])
        if batch_idx == self.skip - 1:
            wait_for_device()
            self._start = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop."""
        wait_for_device()
        self.seconds = time.perf_counter() - self._start


def flops(config: dict[str, Any], clock: DeviceClock) -> float:
    """Floating-point operations that the timed steps needed, forward and backward."""
    causal = config["model_type"] == "gpt2"
    width = config["n_embd"] if causal else config["hidden_size"]
    layers = config["n_layer"] if causal else config["num_hidden_layers"]
    lengths_B = torch.cat(clock.lengths).double()
    matrices = 12 * width * width * layers
    head = config["vocab_size"] * width + (0 if causal else width * width)
    attention = 2 * width * layers * float((lengths_B**2).sum()) * (0.5 if causal else 1.0)
    return 6.0 * (matrices * float(lengths_B.sum()) + head * clock.predicted + attention)


def peak_flops() -> float:
    """Floating-point operations a second of a bf16 product of large matrices; 0.0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    a, b = (torch.randn(_GEMM, _GEMM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(30):
        wait_for_device()
        start = time.perf_counter()
        a @ b
        wait_for_device()
        seconds.append(time.perf_counter() - start)
    return 2.0 * _GEMM**3 / median(seconds[10:])


def run(who: str, model: str, corpus: Corpus, recipe: Recipe, options: argparse.Namespace, cache: Path) -> Run:
    """One run of one side, in a process of its own."""
    quiet()
    config, on_gpu = config_of(model, options.tiny), torch.cuda.is_available()
    if who == "Trainer":
        train = train_causal if model == "gpt2-124m" else train_masked
        further: dict[str, Any] = {"torch_compile": options.compile, "skip": options.skip, "use_cpu": not on_gpu}
        further["accumulation"] = options.accumulation
        if on_gpu:
            further |= {"dataloader_num_workers": 4, "dataloader_pin_memory": True}
        return train("rows", corpus.train, corpus.tokenizer, config, recipe, **further)
    from benchmarks.own_pretraining import CAUSAL, MASKED, data_of, fit

    objective, clock, peak = CAUSAL if model == "gpt2-124m" else MASKED, DeviceClock(options.skip), peak_flops()
    data = data_of(objective, corpus, recipe, cache, num_workers=4 if on_gpu else 0)
    whole = replace(recipe, steps=(recipe.steps or 1) + options.skip)
    done, _, _ = fit(objective, data, config, whole, compiled=options.compile, callbacks=[clock])
    tokens = sum(int(lengths_B.sum()) - objective.special * len(lengths_B) for lengths_B in clock.lengths)
    mfu = flops(config, clock) / clock.seconds / peak if peak else 0.0
    return replace(done, seconds=clock.seconds, tokens=tokens, notes={"mfu": mfu, "peak_tflops": peak / 1e12})


def write(found: dict[str, dict[str, list[Run]]], options: argparse.Namespace, device: str) -> None:
    """Results so far as json and table."""
    lines = ["| model | ours, tokens/s | utilisation | target | Trainer, tokens/s | ours / it | target |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for model, runs in found.items():
        rates = {who: [r.tokens / r.seconds for r in some] for who, some in runs.items()}
        used = median(r.notes["mfu"] for r in runs["ours"])
        lines.append(
            f"| {model} | {median(rates['ours']):,.0f} | {100 * used:.1f} % | {100 * TARGETS['mfu']:.0f} % "
            f"| {median(rates['Trainer']):,.0f} | {median_ratio(rates['ours'], rates['Trainer'])} "
            f"| {TARGETS['Trainer']} |"
        )
    peak = median(r.notes["peak_tflops"] for runs in found.values() for r in runs["ours"])
    lines += [
        "",
        f"Device: {device}, {peak:.0f} TFLOP/s in a bf16 product of {_GEMM:,} × {_GEMM:,} matrices. {options.corpus}, "
        f"blocks between blank lines, {options.steps} steps of about {options.batch_tokens:,} tokens (the Trainer's in "
        f"{options.accumulation} parts), bf16 autocast, "
        f"{'torch.compile on both sides' if options.compile else 'without torch.compile'}, wall-clock time, "
        f"{len(options.seeds)} interleaved runs, each in a new process.",
    ]
    payload = {model: {who: [r.summary() for r in some] for who, some in runs.items()} for model, runs in found.items()}
    payload_ = {"runs": payload, "device": device, "options": vars(options)}
    write_results("pretrain_gpu" + ("_tiny" if options.tiny else ""), payload_, "\n".join(lines))
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--skip", type=int, default=10, help="steps before them")
    parser.add_argument("--tokens", type=int, help="of the corpus (default: enough for all steps of one pass)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run of each side a seed")
    parser.add_argument("--accumulation", type=int, default=16, help="parts in which the Trainer computes a batch")
    parser.add_argument("--compile", action="store_true", help="torch.compile, on both sides")
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU where there is no GPU")
    options = parser.parse_args(arguments)
    options.skip = max(1, options.skip)
    # The steps of a run must lie within one pass; half as much again makes up for documents that are cut.
    options.tokens = options.tokens or (options.steps + options.skip) * options.batch_tokens * 3 // 2
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("this machine has no CUDA device: nothing was measured. Run it on one that has (or --tiny).")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU)"
    texts = shuffled(documents_of(options.corpus, options.data))
    found: dict[str, dict[str, list[Run]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.models:
            folder, config = Path(scratch) / model, config_of(model, options.tiny)
            causal = config["model_type"] == "gpt2"
            tokenizer = train_byte_level(texts, config["vocab_size"], folder / "bpe") if causal else wordpiece()
            corpus = make_corpus(texts, tokenizer, options.tokens, folder, unit="block")
            recipe = Recipe(options.batch_tokens, 1024 if causal else 512, 3e-4, steps=options.steps, bf16=True)
            found[model] = {"ours": [], "Trainer": []}
            for who, seed in interleaved(("ours", "Trainer"), options.seeds):
                done = fresh(run, who, model, corpus, replace(recipe, seed=seed), options, folder / "cache")
                found[model][who].append(done)
                print(f"{model}, {who}: {done.tokens / done.seconds:,.0f} tokens/s", flush=True)
                if len(found[model]["ours"]) == len(found[model]["Trainer"]):
                    write(found, options, device)


if __name__ == "__main__":
    main()
