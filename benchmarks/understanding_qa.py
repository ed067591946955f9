"""Extractive question answering on SubjQA's restaurant reviews, beside a stock Trainer and leaving all unanswered.

    python -m benchmarks.understanding qa quality --data DIR     3 epochs, 3 seeds: F1, and F1 of answerable questions
    python -m benchmarks.understanding qa speed --data DIR       training and prediction, examples/s, one thread

Trained on the training rows, the threshold for no answer tuned on the development rows, the last state measured on the
test rows. The same model answers XQuAD in English, of which it has seen nothing: transfer. The stock Trainer learns
`AutoModelForQuestionAnswering` from the same weights on the same rows for about as long: by the measured speed one and
a half epochs take it what three take ours (`--stock-epochs`).
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.finetune import WARM_UP_ROWS, LoopClock
from benchmarks.measure import RESULTS, interleave, mean_std, median_ratio, native_bf16, write_results
from benchmarks.peer_tasks import PeerTask, Rows
from benchmarks.peer_trainer import minilm_directory, train_trainer
from llm_arch import Task, Trainer
from llm_arch.cli.quiet import quiet
from llm_arch.data import QuestionAnsweringData
from llm_arch.heads.answers import AnswerMetrics
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.inference import predict

MAX_LENGTH = 384
BATCH = 16
METRICS = ("f1", "f1_answerable", "exact_match", "exact_match_answerable")
# Of the peer, as in transformers' own example.
PEER_STRIDE, PEER_BEST, PEER_LONGEST = 128, 20, 30


def measured(spans: Sequence[str], difference: Sequence[float], rows: Sequence[Row], threshold: float) -> AnswerMetrics:
    """The metric of both sides, with these rows counted."""
    metric = AnswerMetrics()
    answers = [row["answers"]["text"] for row in rows]
    metric.update(spans, torch.tensor(difference), threshold, answers, ["en"] * len(rows))
    return metric


def numbers(metric: AnswerMetrics) -> dict[str, float]:
    """Its values."""
    return {name: float(value) for name, value in metric.compute().items()}


class QuestionPeer(PeerTask):
    """The rows for `AutoModelForQuestionAnswering`: sliding windows, the first token for no answer.

    Args:
        rows: the training rows.
        sets: what will be predicted, one set behind the other: `validation`, on which the threshold is tuned, and sets
            to measure.

    Attributes:
        found: the metrics of each set after `score`.
    """

    def __init__(self, rows: Rows, sets: dict[str, list[Row]]) -> None:
        super().__init__(rows)
        self.sets = sets
        self.found: dict[str, dict[str, float]] = {}

    def _labels(self, rows: Rows) -> set[str]:
        return {"start", "end"}

    def encode(self, rows: Rows, tokenizer: Any, max_length: int) -> Dataset:
        """Each window with the place of the answer, or with the first token where it holds none."""
        encoded = tokenizer(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=max_length,
            stride=PEER_STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        self.windows: list[tuple[int, list[tuple[int, int] | None]]] = []
        starts, ends = [], []
        for i, (of, offsets) in enumerate(
            zip(encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping"), strict=True)
        ):
            places = [span if s == 1 else None for span, s in zip(offsets, encoded.sequence_ids(i), strict=True)]
            self.windows.append((of, places))
            shown = [t for t, span in enumerate(places) if span is not None]
            start = end = 0
            for text, first in zip(*rows[of]["answers"].values(), strict=True):
                last = first + len(text)
                if offsets[shown[0]][0] <= first and last <= offsets[shown[-1]][1]:
                    start = max(t for t in shown if offsets[t][0] <= first)
                    end = min(t for t in shown if offsets[t][1] >= last)
                break
            starts.append(start)
            ends.append(end)
        return Dataset.from_dict(dict(encoded) | {"start_positions": starts, "end_positions": ends})

    def model(self, directory: str | Path) -> Any:
        """Logits of start and end at every token."""
        return AutoModelForQuestionAnswering.from_pretrained(directory)

    def collator(self, tokenizer: Any) -> Any:
        """Pads tokens."""
        return DataCollatorWithPadding(tokenizer)

    def score(self, predictions: Any, label_ids: Any) -> float:
        """F1 on the test rows; `found` has the rest. In the order of the rows alone, which grouping does not keep."""
        if not self.sets:
            return 0.0
        rows = [row for some in self.sets.values() for row in some]
        spans, difference = self._best(*predictions, rows)
        first = 0
        threshold = 0.0
        for name, some in self.sets.items():
            here = slice(first, first + len(some))
            metric = measured(spans[here], difference[here], some, threshold)
            if name == "validation":
                threshold = metric.best_threshold()
                metric.threshold = threshold
            self.found[name] = numbers(metric)
            if name == "xquad":
                metric.threshold, metric._computed = float("inf"), None
                self.found["xquad, all answered"] = numbers(metric)
            first += len(some)
        return self.found["test"]["f1"] if "test" in self.found else 0.0

    def _best(self, starts: Any, ends: Any, rows: Sequence[Row]) -> tuple[list[str], list[float]]:
        """The best span of each row over its windows, and by how much no answer scores above it."""
        best, null = [(-np.inf, "")] * len(rows), [np.inf] * len(rows)
        for (of, places), start, end in zip(self.windows, starts, ends, strict=True):
            null[of] = min(null[of], float(start[0] + end[0]))
            for i in np.argsort(start)[: -PEER_BEST - 1 : -1].tolist():
                for j in np.argsort(end)[: -PEER_BEST - 1 : -1].tolist():
                    known = max(i, j) < len(places) and places[i] is not None and places[j] is not None
                    if known and i <= j < i + PEER_LONGEST and start[i] + end[j] > best[of][0]:
                        text = rows[of]["context"][places[i][0] : places[j][1]]  # type: ignore[index]
                        best[of] = (float(start[i] + end[j]), text)
        return [text for _, text in best], [n - score for n, (score, _) in zip(null, best, strict=True)]


def module(folder: Path, **rows: Sequence[Row]) -> QuestionAnsweringData:
    """A data module on these splits, with the defaults of the package but for length and batch."""
    files = {name: str(write_jsonl(some, folder / f"{name}.jsonl")) for name, some in rows.items()}
    given = {"tokenizer": str(minilm_directory()), "validation_fraction": 0.0, "cache_dir": str(folder)}
    return QuestionAnsweringData(**files, max_length=MAX_LENGTH, batch_size=BATCH, **given)


def trained(data: QuestionAnsweringData, seed: int, epochs: int, folder: Path) -> tuple[Task, Trainer, LoopClock]:
    """The package's Trainer with its defaults."""
    L.seed_everything(seed, verbose=False)
    clock = LoopClock()
    task = Task(str(minilm_directory()), QuestionAnswering, data.label_space)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, default_root_dir=str(folder), callbacks=[clock], **options)
    gc.collect()
    trainer.fit(task, datamodule=data)
    return task, trainer, clock


def test(task: Task, trainer: Trainer, data: QuestionAnsweringData) -> dict[str, float]:
    """The metrics on the test rows of a data module."""
    found = trainer.test(task, datamodule=data, verbose=False)[0]
    return {name.removeprefix("test/"): float(value) for name, value in found.items()}


def quality_run(who: str, root: str, seed: int, epochs: float) -> dict[str, Any]:
    """Train, tune the threshold on the development rows, and measure the last state."""
    quiet()
    torch.set_num_threads(1)
    rows, transfer = load("subjqa", Path(root)), load("xquad", Path(root))["test"]
    if who == "stock":
        peer = QuestionPeer(rows["train"], {"validation": rows["validation"], "test": rows["test"], "xquad": transfer})
        done = train_trainer(
            rows["train"],
            minilm_directory(),
            epochs=epochs,  # type: ignore[arg-type]
            kind=lambda _: peer,  # type: ignore[arg-type]
            batch_size=BATCH,
            seed=seed,
            variant="tuned",
            bf16=native_bf16(),
            max_length=MAX_LENGTH,
            evaluate_on=[row for some in peer.sets.values() for row in some],
        )
        return {"who": who, "seed": seed, "train_cpu_seconds": done.cpu_seconds, **peer.found}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = module(folder, **rows)
        task, trainer, clock = trained(data, seed, int(epochs), folder)
        found["test"] = test(task, trainer, data)
        other = module(folder / "xquad", test=transfer)
        found["xquad"] = test(task, trainer, other)
        task.head.null_threshold.fill_(float("inf"))  # type: ignore[operator, union-attr]
        found["xquad, all answered"] = test(task, trainer, other)
    return {"who": who, "seed": seed, "train_cpu_seconds": clock.cpu_seconds, **found}


def quality(options: argparse.Namespace, root: Path) -> None:
    """Both over all seeds, written after every run."""
    epochs = {"ours": options.epochs, "stock": options.stock_epochs}
    runs = kept(epochs) if options.go_on else []
    known = {(run["who"], run["seed"]) for run in runs}
    rows = load("subjqa", root)["test"]
    silence = numbers(measured([""] * len(rows), [1.0] * len(rows), rows, 0.0))
    wanted = [(who, seed) for seed in options.seeds for who in options.who if (who, seed) not in known]
    jobs = [(who, str(root), seed, epochs[who]) for who, seed in wanted]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(quality_run, *job) for job in jobs]):
            runs.append(done.result())
            print(runs[-1], flush=True)
            write_quality(runs, silence, options)


def kept(epochs: dict[str, float]) -> list[dict[str, Any]]:
    """The runs of the results file, with its epochs."""
    written = RESULTS / "understanding_qa_quality.json"
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))["results"] if written.exists() else {}
    if found and (found["epochs"], found["stock_epochs"]) != (epochs["ours"], epochs["stock"]):
        sys.exit(f"{written} has runs of other numbers of epochs: leave --go-on out to begin anew")
    return list(found.get("runs", ()))


def write_quality(runs: list[dict[str, Any]], silence: dict[str, float], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| | F1 by seed | F1 | F1, answerable | EM | EM, answerable | XQuAD-en F1 | all answered | CPU minutes |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for who, name in (("ours", "ours"), ("stock", "stock Trainer")):
        here = sorted((run for run in runs if run["who"] == who), key=lambda run: run["seed"])
        if not here:
            continue
        cells = [", ".join(f"{run['test']['f1']:.3f}" for run in here)]
        cells += [str(mean_std([run["test"][metric] for run in here])) for metric in METRICS]
        cells += [f"{mean(run[other]['f1'] for run in here):.3f}" for other in ("xquad", "xquad, all answered")]
        cells.append(f"{mean(run['train_cpu_seconds'] for run in here) / 60:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| all unanswered | | {' | '.join(f'{silence[m]:.3f}' for m in METRICS)} | 0.000 | | |")
    lines += [
        "",
        f"SubjQA, restaurants, {options.epochs} epochs on the training rows (stock: {options.stock_epochs:g}, which "
        "take about as long), last state, test rows; a question counts "
        f"in each row of the files. Both with {MAX_LENGTH} tokens, batches of {BATCH} (ours questions, the peer "
        "windows) and the threshold for no answer that has the best F1 on the development rows; ours with the "
        "package's other defaults, the stock Trainer with a learning rate of 5e-5, grouped by length and "
        "in bf16 where the CPU has it. XQuAD-en is transfer: nothing of it was trained on, and all "
        "its questions have answers.",
    ]
    payload = {"runs": runs, "all_unanswered": silence, **{k: vars(options)[k] for k in ("epochs", "stock_epochs")}}
    write_results("understanding_qa_quality", payload, "\n".join(lines), data_directory=options.data)


@dataclass(frozen=True)
class Timing:
    """CPU seconds of training on some rows, and of predicting others; both were tokenized before."""

    cpu_seconds: float
    predict_cpu_seconds: float


def time_ours(rows: Sequence[Row], rest: Sequence[Row]) -> Timing:
    """One epoch and one prediction, warmed up."""

    def once(rows: Sequence[Row], rest: Sequence[Row]) -> Timing:
        with tempfile.TemporaryDirectory() as scratch:
            data = module(Path(scratch), train=rows, predict=rest)
            task, trainer, clock = trained(data, 0, 1, Path(scratch))
            data.split("predict")
            before = time.process_time()
            predict(trainer, task, data)
            return Timing(clock.cpu_seconds, time.process_time() - before)

    answered = [row for row in rows if row["answers"]["text"]]  # nothing is learnt without
    once(answered[:WARM_UP_ROWS], rest[:WARM_UP_ROWS])
    return once(rows, rest)


def time_peer(rows: Sequence[Row], rest: Sequence[Row], variant: Any) -> Timing:
    """The same with the stock Trainer; finding the spans in its logits is not counted."""
    done = train_trainer(
        rows,
        minilm_directory(),
        epochs=1,
        kind=lambda given: QuestionPeer(given, {}),  # type: ignore[arg-type]
        batch_size=BATCH,
        variant=variant,
        bf16=variant == "tuned" and native_bf16(),
        max_length=MAX_LENGTH,
        evaluate_on=rest,
    )
    return Timing(done.cpu_seconds, done.predict_cpu_seconds or 0.0)


def speed(options: argparse.Namespace, root: Path) -> None:
    """Ours and the peer as it comes and at its best, interleaved."""
    torch.set_num_threads(options.threads)
    rows = load("subjqa", root)
    train, rest = (random.Random(0).sample(rows[s], min(options.rows, len(rows[s]))) for s in ("train", "test"))
    runs: dict[str, Callable[[], Timing]] = {
        "ours": partial(time_ours, train, rest),
        "stock": partial(time_peer, train, rest, "stock"),
        "tuned": partial(time_peer, train, rest, "tuned"),
    }
    found = interleave(runs, options.repeats)
    lines = ["| | ours, examples/s | stock Trainer | tuned Trainer | ours / stock | ours / tuned |"]
    lines += ["|---|---|---|---|---|---|"]
    for stage, seconds, count in (
        ("training", "cpu_seconds", len(train)),
        ("prediction", "predict_cpu_seconds", len(rest)),
    ):
        cpu = {who: [getattr(timing, seconds) for timing in timings] for who, timings in found.items()}
        rates = [f"{count / median(cpu[who]):.2f}" for who in runs]
        against = [str(median_ratio(cpu[who], cpu["ours"])) for who in ("stock", "tuned")]
        lines.append(f"| {stage} | {' | '.join([*rates, *against])} |")
    lines += [
        "",
        f"SubjQA, restaurants: {len(train):,} questions × 1 epoch, batches of {BATCH}, and prediction of "
        f"{len(rest):,}, all tokenized before; {options.threads} thread, {options.repeats} interleaved repeats, "
        "questions per CPU second, medians with least and greatest. Ours finds the best spans too, the peer only "
        "predicts logits. "
        f"Precision: {'bf16 (ours, tuned)' if native_bf16() else 'fp32 everywhere, as this CPU has no bf16'}; "
        "stock is fp32.",
    ]
    payload = {"timings": {who: [vars(timing) for timing in timings] for who, timings in found.items()}}
    payload |= {"rows": options.rows, "threads": options.threads}
    write_results("understanding_qa_speed", payload, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.understanding qa",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--who", nargs="+", choices=("ours", "stock"), default=["ours", "stock"], help="quality: whose")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--stock-epochs", type=float, default=1.5, help="quality: epochs of the stock Trainer")
    parser.add_argument("--go-on", action="store_true", help="quality: keep the runs of the results file, add the rest")
    parser.add_argument("--processes", type=int, default=2, help="quality runs at a time, one thread each")
    parser.add_argument("--rows", type=int, default=400, help="questions to time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    {"quality": quality, "speed": speed}[options.what](options, root)


if __name__ == "__main__":
    sys.exit(main())
