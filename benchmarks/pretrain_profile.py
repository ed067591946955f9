"""Where the time goes in training steps of `gpu` on a GPU: tokens/s, utilisation, and the kernels by what they are for.

    python -m benchmarks.pretrain profile --models bert-base gpt2-124m

Steps are compiled and warmed up, then some are timed, then a few more are traced.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.corpora import CORPORA
from benchmarks.measure import fresh, wait_for_device, write_results
from benchmarks.own_pretraining import CAUSAL, MASKED, data_of, fit
from benchmarks.pretrain_gpu import MODELS, config_of, corpus_of, flops, peak_flops
from benchmarks.pretraining import Recipe
from llm_arch.cli.quiet import quiet

WARM, TIMED, TRACED = 7, 21, 3
# Names of kernels, the first that fits.
KINDS = {
    "attention": "flash|fmha|attention",
    "matrix products": "nvjet|cublas|cutlass|gemm",
    "loss over the vocabulary": "logsumex|slice_sum|SoftMaxForward",
    "optimizer and norm": "multi_tensor|reduce_kernel",
    "activation": "gelu",
    "layer norm, dropout, residual": "layer_norm|dropout",
    "other": "",
}


class Look(L.Callback):
    """Times and traces steps; `lengths` and `predicted` are what `flops` reads.

    Args:
        trace: file to write the trace to, or None.
    """

    def __init__(self, trace: Path | None) -> None:
        self.trace = trace
        self.lengths: list[torch.Tensor] = []
        self.predicted = 0
        self.seconds = self.traced = 0.0
        self.kernels: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start and stop."""
        if batch_idx == WARM:
            wait_for_device()
            self._start = time.perf_counter()
        elif batch_idx == WARM + TIMED:
            wait_for_device()
            self.seconds = time.perf_counter() - self._start
            self._trace = profile(activities=[ProfilerActivity.CUDA])
            self._trace.__enter__()
            self._start = time.perf_counter()
        elif batch_idx == WARM + TIMED + TRACED:
            wait_for_device()
            self.traced = (time.perf_counter() - self._start) / TRACED
            self._trace.__exit__(None, None, None)
            if self.trace is not None:
                self._trace.export_chrome_trace(str(self.trace))
            for event in self._trace.key_averages():
                if not event.key.startswith("Optimizer.step"):  # a span over kernels that are there by themselves
                    kind = next(kind for kind, names in KINDS.items() if re.search(names, event.key))
                    seconds = event.self_device_time_total / TRACED / 1e6
                    self.kernels[kind] = self.kernels.get(kind, 0.0) + seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a timed step."""
        if WARM <= batch_idx < WARM + TIMED:
            self.lengths.append(batch.lengths)
            self.predicted += len(batch.labels["targets"])


def run(model: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model."""
    quiet()
    set_start_method("fork", force=True)  # of loader processes: others import torch anew
    trace = Path(options.traces) / f"{model}.json.gz" if options.traces else None
    look, peak, causal = Look(trace), peak_flops(), model == "gpt2-124m"
    config, objective = config_of(model, tiny=False), CAUSAL if causal else MASKED
    steps = WARM + TIMED + TRACED + 1
    recipe = Recipe(options.batch_tokens, 1024 if causal else 512, 3e-4, steps=steps, bf16=True)
    data = data_of(objective, corpus_of(model, options.unit, folder, options), recipe, folder / "cache", num_workers=2)
    fit(objective, data, config, recipe, compiled=not options.eager, callbacks=[look])
    tokens = sum(int(lengths_B.sum()) - objective.special * len(lengths_B) for lengths_B in look.lengths)
    return {
        "tokens_per_second": tokens / look.seconds,
        "seconds_a_step": look.seconds / TIMED,
        "mfu": flops(config, look) / look.seconds / peak,
        "peak_tflops": peak / 1e12,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "traced_seconds_a_step": look.traced,
        "kernels": look.kernels,
    }


def write(found: dict[str, dict[str, Any]], options: argparse.Namespace, device: str) -> None:
    """Results so far as json and table."""
    lines = [
        "| model | tokens/s | ms a step | utilisation | memory, GB | kernels, ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for model, one in found.items():
        parts = sorted(one["kernels"].items(), key=lambda pair: -pair[1])
        kernels = ", ".join(f"{kind} {1e3 * seconds:.1f}" for kind, seconds in parts)
        lines.append(
            f"| {model} | {one['tokens_per_second']:,.0f} | {1e3 * one['seconds_a_step']:.1f} "
            f"| {100 * one['mfu']:.1f} % | {one['memory_gb']:.1f} | {kernels} |"
        )
    peak = max(one["peak_tflops"] for one in found.values())
    lines += [
        "",
        f"{device}, {peak:.0f} TFLOP/s in a bf16 product of large matrices. {options.corpus}, {options.unit}s, packed; "
        f"{TIMED} steps of about {options.batch_tokens:,} tokens after {WARM}, then {TRACED} traced; bf16 autocast, "
        f"{'without' if options.eager else 'with'} torch.compile.",
    ]
    write_results("pretrain_profile", found, "\n".join(lines))
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--corpora", help="folder to keep corpora and tokenizers in (default: a temporary one)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--unit", choices=("block", "file"), default="block")
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--traces", help="folder to write traces to, for chrome://tracing (default: none are kept)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args(arguments)
    options.tiny, options.tokens = False, (WARM + TIMED + TRACED + 1) * options.batch_tokens * 5 // 4
    if not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device: nothing was measured. Run it on one that has.")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.models:
            found[model] = fresh(run, model, options, Path(options.corpora or scratch))
            write(found, options, torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
