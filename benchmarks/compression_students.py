"""Small students of a fine-tuned MiniLM, with a teacher and without: three of its layers, a TextCNN and a BiLSTM.

    python -m benchmarks.compression students --data DIR --sets trec sst2

TextCNN and BiLSTM begin with the embeddings of MiniLM as it came, in 128 principal components, and with random weights
above them. Each student learns from the labels alone; from the labels and the dense model (`Distillation`); and those
two from more rows as well, labelled by the teacher as `llm-arch predict --as-rows` does: edits of single words of the
training rows, as `llm-arch augment` makes them, or, for TREC-6, the questions of CommonsenseQA and XQuAD. Students are
exported in int8 for their times, which are from text to prediction at batch 1 as in `joint`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.compressed import (
    Counts,
    counts,
    dense,
    files,
    over_sets,
    paired_bootstrap,
    part_of,
    score,
    speedups,
    timing_options,
    trainer,
)
from benchmarks.compression_joint import command, exported, weights
from benchmarks.evaluation_data import load, write_jsonl
from benchmarks.finetune import kind_of, minilm_directory
from benchmarks.measure import write_results
from llm_arch import Task
from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.inference import Teacher, save
from llm_arch.losses.distillation import Distillation
from llm_arch.precision import choose_precision
from llm_arch.types import Backbone

SETS = ("trec", "sst2")


@dataclass(frozen=True)
class Student:
    """A student and how it is trained, the same with a teacher and without.

    Args:
        backbone: makes it.
        learning_rate: of the default optimizer.
        epochs: over the training rows.
        options: of `Task`.
        states: weight of states in distillation, which needs layers.
        more: copies of each row for training on more rows; 0 for none.
        more_epochs: over all of these.
        exports: whether it can be exported, and is for its times.
    """

    backbone: Callable[[], Backbone | str]
    learning_rate: float | None
    epochs: int
    options: dict[str, Any]
    states: float = 0.0
    more: int = 0
    more_epochs: int = 0
    exports: bool = True


def _minilm() -> str:
    return str(minilm_directory())


def _embedded() -> dict[str, Any]:
    """Arguments of a small backbone whose embeddings begin as MiniLM's own, in a third of their numbers."""
    return {"tokenizer": _minilm(), "vectors": _minilm(), "embedding_size": 128}


STUDENTS = {
    "3 layers": Student(_minilm, None, 6, {"keep_layers": 3}, states=1.0),
    "TextCNN": Student(lambda: TextCNN(**_embedded()), 1e-3, 8, {}, more=8, more_epochs=4),
    "BiLSTM": Student(lambda: RecurrentEncoder(**_embedded()), 2e-3, 8, {}, more=8, more_epochs=3, exports=False),
}
# Accuracy on a tenth of TREC-6's training rows, seed 0, of the dense model, TextCNNs and BiLSTMs.
TRIED = {
    "dense": 0.934,
    "300 random embeddings": 0.853,
    "MiniLM's 384": 0.899,
    "its 128 components": 0.897,
    "384 and a teacher": 0.897,
    "384, a teacher and 20 copies of each row": 0.903,
    "384 of the dense model": 0.903,
    "384, a teacher and 9,747 other questions": 0.919,
    "a BiLSTM on MiniLM's 384": 0.877,
    "that and a teacher": 0.884,
}
ALONE, TAUGHT, MORE, OTHER = "labels alone", "with a teacher", "and more rows", "and other questions"


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, writing results after every set."""
    over_sets("compression students", __doc__, arguments, run, write, sets=SETS, add=_options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    timing_options(parser)


def train(name: str, root: Path, seed: int, folder: Path, student: str, way: str) -> Path:
    """A student; taken from the folder where it lies there."""
    place = folder / name / f"{student}-{way}-{seed}".replace(" ", "-")
    if place.is_dir():
        return place
    rows, teacher, how = files(name, root, folder)["train"], dense(name, root, seed, folder), STUDENTS[student]
    more = None
    if way == MORE:
        more = more_rows(rows, teacher, how.more, place.with_name(f"more-{seed}-{how.more}.jsonl"))
    elif way == OTHER:
        more = other_questions(root, teacher, place.with_name(f"other-{seed}.jsonl"))
    L.seed_everything(seed, verbose=False)
    kind = kind_of(name)
    data = kind.data(rows, tokenizer=_minilm(), validation_fraction=0, cache_dir=str(folder / "cache"), transfer=more)
    terms = [] if way == ALONE else [Distillation(teacher=Teacher(str(teacher)), states=how.states)]
    backbone = how.backbone()
    task = Task(
        backbone,
        kind.head,
        data.label_space,
        learning_rate=how.learning_rate,
        loss_terms=terms,
        vocabulary=data.vocabulary,
        **how.options,
    )
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        trainer(how.more_epochs if more else how.epochs, scratch).fit(task, datamodule=data)
    task.records["cpu_seconds"] = time.process_time() - start
    return save(task, data, place)


def ways(name: str, student: str) -> list[str]:
    """How a student is trained on a set."""
    more = STUDENTS[student].more
    return [ALONE, TAUGHT, *([MORE] if more else []), *([OTHER] if more and name == "trec" else [])]


def other_questions(root: Path, teacher: Path, place: Path) -> str:
    """Questions of other sets, labelled by the teacher."""
    if not place.is_file():
        rows: list[Any] = [row for split in load("commonsenseqa", root).values() for row in split]
        texts = [row["question"]["stem"] for row in rows]
        texts += [str(row["question"]) for row in load("xquad", root)["test"]]
        texts = list(dict.fromkeys(texts))
        asked = str(write_jsonl(({"text": text} for text in texts), place.with_name("other.jsonl")))
        precision, _ = choose_precision("cpu")
        given = ["--model", str(teacher), "--input", asked, "--precision", precision]
        command("predict", *given, "--as-rows", "--output", str(place))
    return str(place)


def more_rows(rows: str, teacher: Path, copies: int, place: Path) -> str:
    """Edits of the training rows, labelled by the teacher."""
    if not place.is_file():
        edited = place.with_name(f"edited-{copies}.jsonl")
        if not edited.is_file():
            given = ["--method", "words", "--copies", str(copies), "--share", "0.15"]
            command("augment", "--input", rows, *given, "--output", str(edited))
        precision, _ = choose_precision("cpu")
        given = ["--model", str(teacher), "--input", str(edited), "--precision", precision]
        command("predict", *given, "--as-rows", "--output", str(place))
    return str(place)


def run(name: str, root: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One set: all students and seeds."""
    rows = load(name, root)["test"]
    right: dict[str, list[list[Counts]]] = {}
    faster: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    for seed in options.seeds:
        models = {"dense": dense(name, root, seed, folder)}
        for student in options.students:
            for way in ways(name, student):
                key = f"{student}, {way}"
                place = train(name, root, seed, folder, student, way)
                models[key] = place
                if STUDENTS[student].exports:
                    rows_of = files(name, root, folder)["train"]
                    models[key] = exported(place, place.with_name(f"{place.name}-int8"), rows_of)
                sizes[key] = weights(models[key])
        for key, place in models.items():
            right.setdefault(key, []).append(counts(place, rows))
        # All of a student's ways take the same time.
        timed = {key: place for key, place in models.items() if key == "dense" or key.endswith(TAUGHT)}
        for key, ratio in speedups(timed, rows, count=options.rows, rounds=options.rounds).items():
            faster.setdefault(key, []).append(ratio)
        print(name, seed, {key: round(score(of[-1]), 4) for key, of in right.items()}, flush=True)
        print({key: str(of[-1]) for key, of in faster.items()}, flush=True)
    alone = {key: f"{key.partition(',')[0]}, {ALONE}" for key in right if key != "dense"}
    return {
        "scores": {key: [score(one) for one in of] for key, of in right.items()},
        "change": {key: paired_bootstrap(right["dense"], right[key]) for key in alone},
        "gain": {key: paired_bootstrap(right[of], right[key]) for key, of in alone.items() if key != of},
        "faster": faster,
        "bytes": sizes,
    }


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| set | student | score by seed | from the dense model | gain by the teacher | times faster | MB |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, one in found.items():
        for key, scores in one["scores"].items():
            faster = one["faster"].get(f"{key.partition(',')[0]}, {TAUGHT}", [])
            lines.append(
                f"| {name} | {key} | {', '.join(f'{s:.3f}' for s in scores)} | {_points(one['change'].get(key))} "
                f"| {_points(one['gain'].get(key))} | {', '.join(f'{r.median:.1f}' for r in faster)} "
                f"| {one['bytes'][key] / 1e6:.1f} |"
                if key != "dense"
                else f"| {name} | dense | {', '.join(f'{s:.3f}' for s in scores)} | | | | |"
            )
    lines += [
        "",
        "Accuracy on the official test split, students but LSTMs in int8 by ONNX Runtime. Changes in points: means "
        "over seeds, with 95 % intervals by a paired bootstrap over the test rows. Times faster than the dense model "
        f"in fp32 at batch 1, by seed: medians over {options.rounds} rounds of {options.rows} rows.",
        "",
        "TextCNNs and BiLSTMs tried on a tenth of TREC-6's training rows, seed 0: "
        + ", ".join(f"{what} {accuracy:.3f}" for what, accuracy in TRIED.items())
        + ".",
    ]
    write_results(part_of("compression_students", options, SETS), found, "\n".join(lines), data_directory=options.data)


def _points(change: tuple[float, float, float] | None) -> str:
    if change is None:
        return ""
    middle, low, high = (100 * value for value in change)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
