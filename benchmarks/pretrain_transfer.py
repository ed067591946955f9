"""What pretraining is good for: BERT-mini learns masked tokens and next sentences, then TREC-6, beside random weights.

    python -m benchmarks.pretrain transfer --data DIR --models FOLDER

Each seed pretrains a model on the standard library's text and fine-tunes it. Other starts: the same model once it has
read the texts of the task's training rows too, as masked tokens, their labels unseen (task-adaptive pretraining,
Gururangan et al. 2020); one that has read these alone; and random weights. All are fine-tuned alike, each with the
pooling and the learning rate of a small grid that are best on a tenth of the training rows, which nothing was trained
on there; the last state is measured on the test rows. The table also tells how many of the task's words the corpus has:
what is never read can't be learnt. `--models FOLDER` keeps the models, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.corpora import CORPORA, documents_of, make_corpus, shuffled, wordpiece_directory
from benchmarks.evaluation_data import Row, cut, data_root, load
from benchmarks.measure import confidence_interval, mean_std, precision_note, write_results
from benchmarks.transfer_runs import SET, continued, finetune, pretrained

STARTS = ("random", "pretrained", "continued", "task's texts alone")
SEEN = 5  # times that a word must stand in the corpus to be known
_WORD = re.compile(r"[a-z0-9]+")


def known(corpus: Iterable[str], task: Iterable[str]) -> tuple[float, float]:
    """The shares of a task's words, and of its different words, that a corpus has a few times."""
    counts = Counter(word for text in corpus for word in _WORD.findall(text.lower()))
    words = [word for text in task for word in _WORD.findall(text.lower())]
    return tuple(mean(counts[word] >= SEEN for word in some) for some in (words, set(words)))  # type: ignore[return-value]


def write(
    notes: list[dict[str, float]],
    tuned: dict[str, dict[str, float]],
    accuracy: dict[str, dict[int, float]],
    words: tuple[float, float],
    options: argparse.Namespace,
) -> None:
    """Results as json and table."""
    lines = ["| start | accuracy by seed | mean ± std | gain in points | pooling, rate | validation, by these |"]
    lines += ["|---|---|---|---|---|---|"]
    for start in STARTS:
        scores = list(accuracy[start].values())
        gains = [100 * (accuracy[start][seed] - accuracy["random"][seed]) for seed in options.seeds]
        gain = f"{mean(gains):+.1f}" if start != "random" else ""
        if gain and len(gains) > 1:
            low, high = confidence_interval(gains)
            gain += f" ({low:+.1f} to {high:+.1f})"
        tried = ", ".join(f"{how}: {value:.3f}" for how, value in tuned[start].items())
        by_seed = ", ".join(f"{score:.3f}" for score in scores)
        lines.append(f"| {start} | {by_seed} | {mean_std(scores)} | {gain} | {best(tuned[start])} | {tried} |")
    told = {name: mean(one[name] for one in notes) for name in notes[0]}
    minutes, tokens = told.pop("cpu_seconds") / 60, told.pop("tokens")
    lines += [
        "",
        "Gain over random weights: mean of the seeds with its 95 % interval, paired, by Student's t. "
        f"Pretraining: {options.corpus}, {tokens:,.0f} tokens in {options.passes} passes, {minutes:.0f} CPU minutes a "
        f"seed, {options.vocabulary:,} tokens in the vocabulary, {options.optimizer} at {options.pretraining_rate:g}, "
        f"{options.batch_tokens} tokens a batch, pieces of {options.length}, dropout {options.dropout:g}; on held-out "
        f"documents {', '.join(f'{name} {value:.3f}' for name, value in told.items())}. Continued: "
        f"{options.continued} passes over the texts of the training rows. Fine-tuning: {options.epochs} epochs on "
        f"{SET}, dropout 0.1, official test rows, {precision_note()}.",
        "",
        f"Of the words of {SET}'s training rows {words[0]:.0%} stand in the corpus at least {SEEN} times, of its "
        f"different words {words[1]:.0%}.",
    ]
    payload = {"pretraining": notes, "tuned": tuned, "accuracy": accuracy, "words": words, "options": vars(options)}
    write_results("pretrain_transfer", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def best(tuned: dict[str, float]) -> str:
    """The pooling and the learning rate that were best on validation rows."""
    return max(tuned, key=lambda how: tuned[how])


def main(arguments: list[str] | None = None) -> None:
    """Parse, pretrain, tune, fine-tune."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", help="folder to keep the models in (default: a temporary one)")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib:docs")
    parser.add_argument("--vocabulary", type=int, default=8192, help="of a tokenizer learnt from it; 30522: BERT's")
    parser.add_argument("--tokens", type=int, default=400_000, help="of the corpus")
    parser.add_argument("--passes", type=int, default=15, help="over the corpus")
    parser.add_argument("--continued", type=int, default=20, help="passes over the task's texts")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of pretraining")
    parser.add_argument("--pretraining-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.0, help="of pretraining")
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3], help="of fine-tuning")
    parser.add_argument("--poolings", nargs="+", choices=("first", "mean", "max"), default=["mean", "max"])
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
        folder = Path(options.models or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        texts = shuffled(documents_of(options.corpus, options.data))
        tokenizer = _tokenizer(texts, options.vocabulary, folder)
        corpus = make_corpus(texts, tokenizer, options.tokens, folder)
        jobs: Any = [pool.submit(pretrained, corpus, seed, options, folder) for seed in options.seeds]
        notes = [job.result() for job in jobs]
        print(notes, flush=True)
        kept, held_out = cut(train)
        first = options.seeds[0]

        def models(read: list[Row], seeds: list[int], suffix: str) -> dict[tuple[str, int], str]:
            """Directories by start and seed, "" for random weights, once these rows' texts have been read."""
            found = {(start, seed): "" for start in STARTS for seed in seeds}
            found |= {("pretrained", seed): str(folder / f"pretrained-{seed}") for seed in seeds}
            waiting = []
            for start, before in (("continued", "pretrained"), ("task's texts alone", "random")):
                for seed in seeds:
                    name = f"{'alone' if before == 'random' else start}{suffix}-{seed}"
                    begun = found[before, seed]
                    waiting.append(pool.submit(continued, begun, read, corpus, seed, options, folder, name))
                    found[start, seed] = str(folder / name)
            for job in waiting:
                job.result()
            return found

        def begin(start: str, train: list[Row], test: list[Row], how: str, seed: int) -> Any:
            return pool.submit(finetune, start, train, test, str(tokenizer), ways[how], seed, options)

        places = models(kept, [first], "-tuning")
        ways: dict[str, tuple[Any, float]] = {f"{p}, {r:g}": (p, r) for p in options.poolings for r in options.rates}
        jobs = {(s, how): begin(places[s, first], kept, held_out, how, first) for s in STARTS for how in ways}
        tuned = {start: {how: jobs[start, how].result() for how in ways} for start in STARTS}
        print(tuned, flush=True)
        places = models(train, options.seeds, "")
        jobs = {
            (start, seed): begin(places[start, seed], train, rows["test"], best(tuned[start]), seed)
            for start in STARTS
            for seed in options.seeds
        }
        accuracy = {start: {seed: jobs[start, seed].result() for seed in options.seeds} for start in STARTS}
    write(notes, tuned, accuracy, known(texts, (row["text"] for row in train)), options)


def _tokenizer(texts: list[str], vocabulary: int, folder: Path) -> Path:
    if vocabulary == 30522:
        return wordpiece_directory()
    from llm_arch.corpus.tokenizer_training import train_tokenizer

    place = folder / f"tokenizer-{vocabulary}"
    if not place.is_dir():
        train_tokenizer(texts, "wordpiece", vocabulary, lowercase=True, progress=False).save_pretrained(place)
    return place


if __name__ == "__main__":
    main()
