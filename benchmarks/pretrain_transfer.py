"""What pretraining is good for: BERT-mini learns masked tokens and next sentences, then TREC-6, beside random weights.

    python -m benchmarks.pretrain transfer --data DIR

Each seed pretrains a model on the standard library's text, writes it to a directory, and fine-tunes from that; the
other starts from random weights of that seed. Both are trained alike, each with the learning rate of a small grid that
is best on a tenth of the training rows, which it is not trained on there; the last state is measured on the test rows.
The table also tells how many of the task's words the corpus has: what is never read can't be learnt.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch

from benchmarks.corpora import CORPORA, Corpus, documents_of, make_corpus, shuffled, wordpiece_directory
from benchmarks.evaluation_data import Row, cut, data_root, load, write_jsonl
from benchmarks.finetune import module
from benchmarks.measure import confidence_interval, mean_std, native_bf16, precision_note, write_results
from benchmarks.pretraining import BERT_MINI, Recipe, Run
from llm_arch import Task, Trainer
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.cli.quiet import quiet
from llm_arch.heads.classification import SequenceClassification

SET = "trec"
STARTS = ("pretrained", "random")
SEEN = 5  # times that a word must stand in the corpus to be known
_WORD = re.compile(r"[a-z0-9]+")


def pretrain(corpus: Corpus, seed: int, options: argparse.Namespace, cache: Path, output: Path) -> Run:
    """Pretrain with one seed and write the model directory."""
    from benchmarks.own_pretraining import PAIRS, data_of, fit, measured, optimizer_named
    from llm_arch.inference.directory import save

    quiet()
    torch.set_num_threads(1)
    recipe = Recipe(options.batch_tokens, options.length, options.pretraining_rate, seed=seed, bf16=native_bf16())
    data = data_of(PAIRS, corpus, recipe, cache)
    muon = options.optimizer == "muon"
    optimizer = optimizer_named("muon", recipe.learning_rate, recipe.weight_decay) if muon else None
    shape = BERT_MINI | {f"{part}_dropout_prob": options.dropout for part in ("hidden", "attention_probs")}
    run, task, _ = fit(PAIRS, data, shape, recipe, passes=options.passes, optimizer=optimizer)
    save(task, data, output)
    return replace(run, notes=measured(task, data, "validation"))


def finetune(
    start: str | None, train: list[Row], test: list[Row], rate: float, seed: int, options: argparse.Namespace
) -> float:
    """Accuracy after training from a model directory, or from random weights."""
    quiet()
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = module(SET, train, folder, test=str(write_jsonl(test, folder / "test.jsonl")))
        backbone = start or Pretrained(config=dict(BERT_MINI))
        task = Task(backbone, SequenceClassification, data.label_space, learning_rate=rate, dropout=0.1)
        trainer = Trainer(
            max_epochs=options.epochs,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(task, datamodule=data)
        return float(trainer.test(task, datamodule=data, verbose=False)[0]["test/accuracy"])


def known(corpus: Iterable[str], task: Iterable[str]) -> tuple[float, float]:
    """The shares of a task's words, and of its different words, that a corpus has a few times."""
    counts = Counter(word for text in corpus for word in _WORD.findall(text.lower()))
    words = [word for text in task for word in _WORD.findall(text.lower())]
    return tuple(mean(counts[word] >= SEEN for word in some) for some in (words, set(words)))  # type: ignore[return-value]


def write(
    pretraining: dict[int, Run],
    tuned: dict[str, dict[float, float]],
    accuracy: dict[str, dict[int, float]],
    words: tuple[float, float],
    options: argparse.Namespace,
) -> None:
    """Results as json and table."""
    lines = ["| start | accuracy by seed | mean ± std | learning rate | validation accuracy of each rate |"]
    lines += ["|---|---|---|---|---|"]
    for start in STARTS:
        scores = list(accuracy[start].values())
        rates = ", ".join(f"{rate:g}: {value:.3f}" for rate, value in tuned[start].items())
        best = max(tuned[start], key=lambda rate: tuned[start][rate])
        by_seed = ", ".join(f"{score:.3f}" for score in scores)
        lines.append(f"| {start} | {by_seed} | {mean_std(scores)} | {best:g} | {rates} |")
    gains = [100 * (accuracy["pretrained"][seed] - accuracy["random"][seed]) for seed in options.seeds]
    if len(gains) > 1:
        low, high = confidence_interval(gains)
        lines += [
            "",
            f"Pretraining gains **{mean(gains):+.1f} points**, 95 % confidence interval {low:+.1f} to {high:+.1f} "
            f"(paired over {len(gains)} seeds, Student's t).",
        ]
    notes = {
        name: mean(run.notes[name] for run in pretraining.values()) for name in pretraining[options.seeds[0]].notes
    }
    held_out = ", ".join(f"{name} {value:.3f}" for name, value in notes.items())
    minutes = mean(run.cpu_seconds for run in pretraining.values()) / 60
    tokens = next(iter(pretraining.values())).tokens
    lines += [
        "",
        f"Pretraining: {options.corpus}, {tokens:,} tokens in {options.passes} passes, {minutes:.0f} CPU minutes a "
        f"seed, {options.optimizer} at {options.pretraining_rate:g}, {options.batch_tokens} tokens a batch, pieces of "
        f"{options.length}, dropout {options.dropout:g}; on held-out documents {held_out}. Fine-tuning: "
        f"{options.epochs} epochs on {SET}, dropout 0.1, official test rows, {precision_note()}.",
        "",
        f"Of the words of {SET}'s training rows {words[0]:.0%} stand in the corpus at least {SEEN} times, of its "
        f"different words {words[1]:.0%}.",
    ]
    runs = {str(seed): run.summary() for seed, run in pretraining.items()}
    payload = {"pretraining": runs, "tuned": tuned, "accuracy": accuracy, "words": words, "options": vars(options)}
    write_results("pretrain_transfer", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse, pretrain, tune, fine-tune."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib:docs")
    parser.add_argument("--tokens", type=int, default=500_000, help="of the corpus")
    parser.add_argument("--passes", type=int, default=4, help="over the corpus")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of pretraining")
    parser.add_argument("--pretraining-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1, help="of pretraining")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3], help="of fine-tuning")
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--rows", type=int, help="training rows, drawn at random; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.data = str(data_root(options.data))
    rows = load(SET, Path(options.data))
    train = rows["train"] if options.rows is None else random.Random(0).sample(rows["train"], options.rows)
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        folder, texts = Path(scratch), shuffled(documents_of(options.corpus, options.data))
        corpus = make_corpus(texts, wordpiece_directory(), options.tokens, folder / "corpus")
        models = {seed: folder / f"model-{seed}" for seed in options.seeds}
        jobs: dict[Any, Any] = {
            seed: pool.submit(pretrain, corpus, seed, options, folder / f"cache-{seed}", models[seed])
            for seed in options.seeds
        }
        pretraining = {seed: job.result() for seed, job in jobs.items()}
        print({seed: dict(run.notes) for seed, run in pretraining.items()}, flush=True)

        def begin(start: str, rows: list[Row], test: list[Row], rate: float, seed: int) -> Any:
            directory = str(models[seed]) if start == "pretrained" else None
            return pool.submit(finetune, directory, rows, test, rate, seed, options)

        kept, held_out = cut(train)
        first = options.seeds[0]
        jobs = {(s, rate): begin(s, kept, held_out, rate, first) for s in STARTS for rate in options.rates}
        tuned = {start: {rate: jobs[start, rate].result() for rate in options.rates} for start in STARTS}
        best = {start: max(options.rates, key=lambda rate: tuned[start][rate]) for start in STARTS}
        jobs = {(s, seed): begin(s, train, rows["test"], best[s], seed) for s in STARTS for seed in options.seeds}
        accuracy = {start: {seed: jobs[start, seed].result() for seed in options.seeds} for start in STARTS}
    words = known(texts, (row["text"] for row in train))
    write(pretraining, tuned, accuracy, words, options)


if __name__ == "__main__":
    main()
