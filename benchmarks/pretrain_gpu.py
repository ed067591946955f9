"""BERT-base and GPT-2 with 124M parameters on a GPU: tokens/s, model FLOPs utilisation, and the Trainer beside.

    python -m benchmarks.pretrain gpu            on the GPU
    python -m benchmarks.pretrain gpu --tiny     two small models wherever it runs: says whether it works, no more

Documents of mixed lengths: the blocks between blank lines, or whole files cut at the longest length. Ours packs them,
the Trainer pads batches of like lengths, computed in parts, since the longest would not fit into memory otherwise.
Utilisation is the floating-point operations the task needs (matrix products and attention within documents, forward
and backward; output scores only where a token is predicted) by what a product of large bf16 matrices reaches on the
same device. Each run is a process of its own. All of them get ready side by side, compiled ones compile, and then they
train one after another.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing import get_context, set_start_method
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from torch._dynamo.utils import counters

from benchmarks.corpora import CORPORA, Corpus, Unit, documents_of, make_corpus, shuffled, train_byte_level
from benchmarks.corpora import wordpiece_directory as wordpiece
from benchmarks.measure import wait_for_device, write_results
from benchmarks.peer_pretraining import train_causal, train_masked
from benchmarks.pretraining import BERT_MINI, Recipe, Run, gpt
from benchmarks.turns import Turn, Turns
from llm_arch.cli.quiet import quiet

MODELS = ("bert-base", "gpt2-124m")


@dataclass(frozen=True)
class Case:
    """A run: which model, on which documents, by whom, and whether through `torch.compile`."""

    model: str
    unit: Unit
    who: str
    compiled: bool

    @property
    def causal(self) -> bool:
        """Whether it is a decoder."""
        return self.model == "gpt2-124m"


CASES = [
    Case(model, unit, who, compiled)
    for model in MODELS
    for unit in ("block", "file")
    for who in ("ours", "Trainer")
    for compiled in (False, True)
    if unit == "block" or (who == "ours" and compiled)
]
TARGETS = {"mfu": 0.45, "Trainer": 2.0}
_GEMM = 8192
_AGAIN = 8  # steps that are not timed after another run's: memory has to be asked for anew


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
        turn: taken before the first step, or where it compiles, after those; then a few more are not timed.
    """

    def __init__(self, skip: int, turn: Turn) -> None:
        self.turn, self.compiled = turn, skip if turn.compiling else 0
        self.start = self.compiled + (_AGAIN if turn.compiling else skip)
        self.lengths: list[torch.Tensor] = []
        self.predicted = 0
        self.seconds = self.peak = 0.0
        self.graphs = 0  # compiled in the steps that are timed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Wait for this run's turn; start the clock once warm."""
        if batch_idx == self.compiled:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # others are at work meanwhile
            self.turn.take()
            self.peak = peak_flops()
        if batch_idx == self.start:
            wait_for_device()
            self.graphs = -_graphs()
            self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what a step does."""
        if batch_idx >= self.start:
            self.lengths.append(batch.lengths)
            self.predicted += len(batch.labels["targets"])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop."""
        wait_for_device()
        self.seconds = time.perf_counter() - self._start
        self.graphs += _graphs()


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


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


def run(case: Case, corpus: Corpus, recipe: Recipe, options: argparse.Namespace, cache: Path, turns: Turns) -> Run:
    """One run of one side, in a process of its own."""
    turn = turns.mine(case.compiled)
    try:
        return _run(case, corpus, recipe, options, cache, turn)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next one needs it
        turn.give_back()


def _run(case: Case, corpus: Corpus, recipe: Recipe, options: argparse.Namespace, cache: Path, turn: Turn) -> Run:
    quiet()
    set_start_method("fork", force=True)  # of loader processes: others import torch anew
    config, on_gpu = config_of(case.model, options.tiny), torch.cuda.is_available()
    if case.who == "Trainer":
        train = train_causal if case.causal else train_masked
        further: dict[str, Any] = {"torch_compile": case.compiled, "skip": options.skip, "use_cpu": not on_gpu}
        further |= {"accumulation": options.accumulation * (2 if case.causal else 1), "turn": turn}
        if on_gpu:
            further |= {"dataloader_num_workers": 4, "dataloader_pin_memory": True}
        done = train("rows", corpus.train, corpus.tokenizer, config, recipe, **further)
        return replace(done, notes={**done.notes, "memory_gb": _memory()})
    from benchmarks.own_pretraining import CAUSAL, MASKED, data_of, fit

    objective, clock = CAUSAL if case.causal else MASKED, DeviceClock(options.skip, turn)
    data = data_of(objective, corpus, recipe, cache, num_workers=2 if on_gpu else 0)  # as a longer run has them
    whole = replace(recipe, steps=(recipe.steps or 1) + clock.start)
    done, _, _ = fit(objective, data, config, whole, compiled=case.compiled and on_gpu, callbacks=[clock])
    tokens = sum(int(lengths_B.sum()) - objective.special * len(lengths_B) for lengths_B in clock.lengths)
    mfu = flops(config, clock) / clock.seconds / clock.peak if clock.peak else 0.0
    notes = {"mfu": mfu, "peak_tflops": clock.peak / 1e12, "memory_gb": _memory(), "graphs": clock.graphs}
    return replace(done, seconds=clock.seconds, tokens=tokens, notes=notes)


def _memory() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def write(found: dict[Case, Run], options: argparse.Namespace, device: str) -> None:
    """Results so far as json and table."""
    lines = [
        "| model | documents | tokens in one | who | tokens/s | utilisation | by the best product | ours / Trainer "
        "| memory, GB |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    peak = max([one.notes["peak_tflops"] for case, one in found.items() if case.who == "ours"], default=0.0)
    for case, one in sorted(found.items(), key=lambda pair: list(CASES).index(pair[0])):
        peers = [replace(case, who="Trainer", compiled=compiled) for compiled in (False, True)]
        theirs = max((found[peer].tokens / found[peer].seconds for peer in peers if peer in found), default=None)
        ratio = f"{one.tokens / one.seconds / theirs:.2f}" if theirs and case.who == "ours" else ""
        used = [""] * 2
        if peak and case.who == "ours":  # the device gives each process another clock, by its warmth
            shares = one.notes["mfu"], one.notes["mfu"] * one.notes["peak_tflops"] / peak
            used = [f"{100 * share:.1f} %" for share in shares]
        who = case.who + (", compiled" if case.compiled else "")
        lines.append(
            f"| {case.model} | {case.unit}s | {options.mean[case.model, case.unit]:.0f} | {who} "
            f"| {one.tokens / one.seconds:,.0f} | {' | '.join(used)} | {ratio} | {one.notes['memory_gb']:.1f} |"
        )
    lines += [
        "",
        f"Device: {device}. Utilisation: by a bf16 product of {_GEMM:,} × {_GEMM:,} matrices, timed before the steps "
        f"in the same process, and by the best of all processes, {peak:.0f} TFLOP/s. "
        f"Documents: blocks between blank lines, or files, of {options.corpus}, cut at 512 tokens (BERT) and 1,024 "
        f"(GPT-2). {options.steps} steps of about {options.batch_tokens:,} tokens after {options.skip} that are not "
        "timed; the Trainer's batches hold rows of like length and are computed in "
        f"{options.accumulation} parts (BERT) and {2 * options.accumulation} (GPT-2). bf16 autocast, wall-clock time, "
        "one run each; the ratio is to the faster of the Trainer's. "
        f"Targets: utilisation {100 * TARGETS['mfu']:.0f} %, {TARGETS['Trainer']} times the Trainer.",
    ]
    anew = [f"{case.model} on {case.unit}s" for case, one in found.items() if one.notes.get("graphs")]
    if anew:
        lines[-1] += f" In timed steps of {' and '.join(anew)} a graph was compiled, which says nothing of its speed."
    payload = [{**asdict(case), "run": one.summary()} for case, one in found.items()]
    given = {key: value for key, value in vars(options).items() if key != "mean"}
    write_results(
        "pretrain_gpu" + ("_tiny" if options.tiny else ""), {"runs": payload, "options": given}, "\n".join(lines)
    )
    print("\n".join(lines), flush=True)


def corpus_of(model: str, unit: Unit, folder: Path, options: argparse.Namespace) -> Corpus:
    """The documents and the tokenizer of a model; those of the folder, where they lie there."""
    place = folder / f"{model}-{unit}"
    files = [place / f"{name}.jsonl" for name in ("train", "validation", "test")]
    config = config_of(model, options.tiny)
    causal = config["model_type"] == "gpt2"
    tokenizer = folder / "bpe" if causal else wordpiece()
    texts = None if all(file.is_file() for file in files) else shuffled(documents_of(options.corpus, options.data))
    if causal and not tokenizer.is_dir():
        train_byte_level(texts or shuffled(documents_of(options.corpus, options.data)), config["vocab_size"], tokenizer)
    return make_corpus(texts, tokenizer, options.tokens, place, unit=unit) if texts else Corpus(*files, tokenizer, 0)


def mean_length(corpus: Corpus, longest: int) -> float:
    """Tokens of a document, as far as it is read at a time: of the first thousand."""
    from transformers import AutoTokenizer

    with corpus.train.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in islice(file, 1000)]
    ids = AutoTokenizer.from_pretrained(corpus.tokenizer)(texts, verbose=False)["input_ids"]
    pieces = [min(longest, len(one) - start) for one in ids for start in range(0, len(one), longest)]
    return sum(pieces) / len(pieces)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--corpora", help="folder to keep corpora and tokenizers in (default: a temporary one)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--units", nargs="+", choices=("block", "file"), default=["block", "file"])
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--skip", type=int, default=10, help="steps before them")
    parser.add_argument("--tokens", type=int, help="of the corpus (default: enough for all steps of one pass)")
    parser.add_argument("--accumulation", type=int, default=8, help="parts in which the Trainer computes a batch")
    parser.add_argument("--compiled-trainer", action="store_true", help="the Trainer through torch.compile, too")
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU where there is no GPU")
    options = parser.parse_args(arguments)
    options.skip = max(1, options.skip)
    # The steps of a run must lie within one pass; more than that makes up for documents that are cut.
    options.tokens = options.tokens or (options.steps + options.skip + _AGAIN) * options.batch_tokens * 5 // 4
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("this machine has no CUDA device: nothing was measured. Run it on one that has (or --tiny).")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU)"
    cases = [
        case
        for case in CASES
        if case.model in options.models
        and case.unit in options.units
        and (options.compiled_trainer or not (case.who == "Trainer" and case.compiled))
    ]
    found: dict[Case, Run] = {}
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, spawn.Manager() as manager:
        folder, turns = Path(options.corpora or scratch), Turns(manager, sum(case.compiled for case in cases))
        longest = {model: 512 if model == "bert-base" else 1024 for model in options.models}
        corpora = {(c.model, c.unit): corpus_of(c.model, c.unit, folder, options) for c in cases}
        options.mean = {key: mean_length(corpus, longest[key[0]]) for key, corpus in corpora.items()}
        with ProcessPoolExecutor(len(cases), mp_context=spawn, max_tasks_per_child=1) as pool:
            running = {}
            for number, case in enumerate(cases):
                recipe = Recipe(options.batch_tokens, longest[case.model], 3e-4, steps=options.steps, bf16=True)
                cache = Path(scratch) / f"cache{number}"
                given = (case, corpora[case.model, case.unit], recipe, options, cache, turns)
                running[pool.submit(run, *given)] = case
            for one in as_completed(running):
                case = running[one]
                if error := one.exception():
                    print(f"{case}: {type(error).__name__}: {error}", flush=True)
                    continue
                found[case] = one.result()
                write(found, options, device)


if __name__ == "__main__":
    main()
