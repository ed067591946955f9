"""Models before and after compression: trained, kept in a folder, scored row by row and timed in turns."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from seqeval.metrics.sequence_labeling import get_entities

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.finetune import kind_of, minilm_directory
from benchmarks.measure import Spread
from llm_arch import Task, Trainer
from llm_arch.cli.quiet import quiet
from llm_arch.inference import Predictor, save
from llm_arch.inference.directory import load as load_model
from llm_arch.types import LossTerm

SETS = ("sst2", "trec", "wnut17")
Counts = tuple[int, int, int]  # right, predicted, wanted
_TURN = 20  # rows


def over_sets(
    part: str,
    description: str | None,
    arguments: list[str] | None,
    run: Callable[[str, Path, Path, argparse.Namespace], dict[str, Any]],
    write: Callable[[dict[str, Any], argparse.Namespace], None],
    *,
    sets: Sequence[str] = SETS,
    add: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """A part of a benchmark from the command line: every set in turn, and the results written after each.

    Args:
        part: benchmark and part, as `pruning structure`.
        description: what it does.
        arguments: the command line; None for that of the process.
        run: measures a set, given its name, where the data is, where models are kept, and the options.
        write: writes the results so far.
        sets: what may be measured.
        add: adds options of the part's own.
    """
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.{part}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", help="folder to keep the models in (default: a temporary one)")
    parser.add_argument("--sets", nargs="+", choices=sets, default=list(sets))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add(parser)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sets:
            found[name] = run(name, root, Path(options.models or scratch), options)
            write(found, options)


def timing_options(parser: argparse.ArgumentParser) -> None:
    """How much is timed."""
    parser.add_argument("--rows", type=int, default=100, help="test rows to time")
    parser.add_argument("--rounds", type=int, default=5)


def part_of(name: str, options: argparse.Namespace, sets: Sequence[str] = SETS) -> str:
    """What results are called: a part of the sets does not take the place of all."""
    return name if sorted(options.sets) == sorted(sets) else "_".join([name, *options.sets])


def files(name: str, root: Path, folder: Path) -> dict[str, str]:
    """The training and test rows of a set as files."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    rows = load(name, root)
    return {split: str(write_jsonl(rows[split], place / f"{split}.jsonl")) for split in ("train", "test")}


def trainer(epochs: int, folder: str | Path, callbacks: Sequence[Callback] = ()) -> Trainer:
    """The package's Trainer, which keeps nothing but the last state."""
    return Trainer(
        max_epochs=epochs,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )


def dense(name: str, root: Path, seed: int, folder: Path, epochs: int = 3) -> Path:
    """A model fine-tuned on all training rows with the defaults; taken from the folder where it lies there."""
    place = folder / name / f"dense-{seed}"
    if place.is_dir():
        return place
    rows = files(name, root, folder)
    L.seed_everything(seed, verbose=False)
    kind = kind_of(name)
    data = kind.data(
        rows["train"], tokenizer=str(minilm_directory()), validation_fraction=0, cache_dir=str(folder / "cache")
    )
    task = Task(str(minilm_directory()), kind.head, data.label_space)
    with tempfile.TemporaryDirectory() as scratch:
        trainer(epochs, scratch).fit(task, datamodule=data)
    return save(task, data, place)


def compressed(
    model: Path,
    place: Path,
    train: str,
    callback: Callable[[], Callback],
    *,
    seed: int,
    epochs: int,
    learning_rate: float | None = None,
    terms: Sequence[LossTerm] = (),
    more: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """A model compressed while it trains on, by the last state; taken from its place where it lies there.

    `more` is a file of rows to train on as well.

    Returns:
        Its directory and what its record says: of the callback, and the CPU seconds that all of it took.
    """
    if not place.is_dir():
        loaded = load_model(model)
        L.seed_everything(seed, verbose=False)
        options = {"train": train, "validation_fraction": 0, "cache_dir": str(place.parent.parent / "cache")}
        data = loaded.data_for(**options, **({} if more is None else {"transfer": more}))
        task = loaded.task(learning_rate=learning_rate, loss_terms=terms)
        start = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            trainer(epochs, scratch, [callback()]).fit(task, datamodule=data)
        task.records["cpu_seconds"] = time.process_time() - start
        save(task, data, place)
    return place, load_model(place).record["records"]


def counts(model: Path, rows: Sequence[Row]) -> list[Counts]:
    """For each row how much is right, predicted and wanted: its label, or its entities."""
    predictor = Predictor(model)
    entities = "tags" in rows[0]
    found: list[Counts] = []
    given = [{k: v for k, v in row.items() if k not in ("label", "tags")} for row in rows]
    for row, prediction in zip(rows, predictor.stream(given), strict=True):
        if not entities:
            right = prediction.label == row["label"]  # type: ignore[attr-defined]
            found.append((int(right), 1, 1))
            continue
        wanted = _entities(row["tokens"], row["tags"])  # type: ignore[arg-type]
        told = {(one.start, one.end, one.label) for one in prediction.entities}  # type: ignore[attr-defined]
        found.append((len(wanted & told), len(told), len(wanted)))
    return found


def score(rows: Sequence[Counts]) -> float:
    """F1 over all rows, which is the accuracy where each has one label."""
    right, predicted, wanted = (sum(column) for column in zip(*rows, strict=True))
    return 2 * right / max(predicted + wanted, 1)


def paired_bootstrap(
    before: Sequence[Sequence[Counts]], after: Sequence[Sequence[Counts]], draws: int = 2000
) -> tuple[float, float, float]:
    """The difference of the mean scores over seeds, after minus before, and its 95 % interval over the test rows.

    Args:
        before: counts of the same rows for each seed.
        after: the same of the other models.
        draws: rows drawn with replacement so many times, the same for all models.
    """
    pairs = [np.array([before[s], after[s]]) for s in range(len(before))]  # (2, rows, 3) each
    rng = np.random.default_rng(0)

    def difference(chosen: Any) -> float:
        found = []
        for pair in pairs:
            sums = pair[:, chosen].sum(1)
            f1 = 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)
            found.append(f1[1] - f1[0])
        return float(np.mean(found))

    rows = pairs[0].shape[1]
    drawn = [difference(rng.integers(0, rows, rows)) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return difference(np.arange(rows)), float(low), float(high)


def speedups(models: Mapping[str, Path], rows: Sequence[Row], *, count: int, rounds: int) -> dict[str, Spread]:
    """How many times faster than the first each model predicts rows, one by one, from text to prediction.

    Each row at its own length, tokenization included, one thread, CPU time; models take turns, so that what else the
    machine does falls on all alike. A turn is some rows, and begins with one that is not counted: it brings the model
    back into the processor's caches, where a model that serves is. A round's ratio is of its sums over the rows.

    Args:
        models: by name; the first is what others are compared with.
        rows: of which some are taken, the same for all.
        count: how many.
        rounds: over all of them; a first round is not counted.

    Returns:
        Median, least and greatest ratio over the rounds.
    """
    torch.set_num_threads(1)
    predictors = {name: Predictor(place) for name, place in models.items()}
    chosen = random.Random(0).sample(list(rows), min(count, len(rows)))
    given = [{k: v for k, v in row.items() if k not in ("label", "tags")} for row in chosen]
    first = next(iter(models))
    ratios: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        sums = dict.fromkeys(models, 0.0)
        for first_row in range(0, len(given), _TURN):
            for name, predictor in predictors.items():
                list(predictor.stream(given[:1]))
                for row in given[first_row : first_row + _TURN]:
                    start = time.process_time()
                    list(predictor.stream([row]))
                    sums[name] += time.process_time() - start
        if turn:
            for name in models:
                ratios[name].append(sums[first] / sums[name])
    return {name: Spread(median(found), min(found), max(found), len(found)) for name, found in ratios.items()}


def _entities(words: Sequence[str], tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entities by the characters of the words with spaces between them, as predictions have them."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    found = get_entities(list(tags))
    return {(int(ends[first]) - len(words[first]), int(ends[last]), kind) for kind, first, last in found}
