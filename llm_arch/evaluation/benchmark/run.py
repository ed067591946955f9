"""The benchmark: models side by side on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from llm_arch import model_directory
from llm_arch.evaluation.benchmark import memory, quality, rows, size, timing
from llm_arch.evaluation.benchmark.measured import AtLength, Measured, OnRows
from llm_arch.evaluation.benchmark.rows import Row
from llm_arch.inference import Predictor
from llm_arch.inference.directory import load
from llm_arch.types import UserError

LENGTHS = (16, 32, 64, 128)
_TIMED_ROWS = 64  # of a file, one by one
_REPEATS = 8  # of a row's prediction in a turn
_OWN = "rows"
_MS = 1e3


def benchmark(
    models: Sequence[str | Path],
    *,
    data: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    batch_size: int = 16,
    threads: int = 1,
    seconds: float = 10.0,
    with_memory: bool = True,
    device: str | None = None,
    trust: tuple[str, ...] = (),
    advance: Callable[[str, float], None] = lambda what, share: None,
) -> list[Measured]:
    """Measure models: their size, their speed from text to prediction, and with rows the metric of their head.

    Models take turns, so that what else the machine does falls on all alike. On one thread of a CPU times are CPU time,
    which other processes hardly change; else they are those of the clock on the wall.

    Args:
        models: model directories.
        data: rows with labels, as for `llm-arch test`; of them, the metric, and times of rows as they are. None for
            rows made of the words of the tokenizer.
        lengths: tokens of the rows that are timed; lengths that a model does not read are left out.
        batch_size: rows of a batch for throughput.
        threads: of torch.
        seconds: of timing, for each model; more where three rounds take longer.
        with_memory: also measure memory, in a fresh process for each model, which takes some seconds.
        device: where to predict; None for a GPU if there is one.
        trust: modules outside this package that the models may use.
        advance: told what is being done and which share of it, in [0, 1], is.

    Returns:
        What was measured of each model, in their order.

    Raises:
        UserError: a model can't be loaded, models are of different tasks, or rows do not fit.
    """
    _check(models, lengths, batch_size, threads, seconds)
    homes = [model_directory.home(Path(model)) for model in models]
    with timing.on_threads(threads):
        predictors = []
        for home in homes:
            advance(f"loading {home}", 0.0)
            most = max(4096, batch_size * max(lengths, default=1))
            predictors.append(Predictor(load(home, trust=trust), device=device, batch_tokens=most))
        if data is not None:
            _check_tasks(homes, predictors)
        found = []
        for name, home, predictor in zip(names(models), homes, predictors, strict=True):
            advance(f"{name}: {'metric and size' if data else 'size'}", 0.0)
            found.append(_sized(name, home, predictor, data, trust))
        jobs = _Jobs(predictors, data, lengths, batch_size)
        if with_memory:
            for i, home in enumerate(homes):
                advance(f"{found[i].name}: memory", i / len(homes))
                found[i] = replace(found[i], memory_bytes=memory.peak_memory(home, jobs.batches(i), threads, trust))
        clock, _ = timing.clock_of(predictors[0].device, threads)
        times = timing.round_robin(
            jobs.runs, jobs.repeats, seconds * len(models), clock, lambda share: advance("timing", share)
        )
        return [jobs.measured(i, one, times) for i, one in enumerate(found)]


def names(models: Sequence[str | Path]) -> list[str]:
    """Short names of models: their folder's, or its parent's where that is `model`; the whole path where two share it.

    Args:
        models: their directories.
    """
    paths = [Path(model) for model in models]
    short = [path.parent.name if path.name == "model" and path.parent.name else path.name for path in paths]
    return [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


class _Jobs:
    """What is timed: for every length single rows and batches, and rows of a file as they are.

    Args:
        predictors: the models.
        data: a file of rows, or None.
        lengths: tokens of rows.
        batch_size: rows of a batch.
    """

    def __init__(
        self, predictors: Sequence[Predictor], data: str | None, lengths: Sequence[int], batch_size: int
    ) -> None:
        self.predictors, self.batch_size = predictors, batch_size
        self.given: list[Row] = []
        if data is not None:
            self.given = rows.spread(rows.rows_of(predictors[0].model.data, data), _TIMED_ROWS)
        made = [_made(predictor, self.given, lengths, batch_size) for predictor in predictors]
        if not data and len({_task(predictor) for predictor in predictors}) == 1:
            made = [made[0]] * len(made)  # the same texts for all, whatever their tokenizers make of them
        self.rows = made
        # A length that one of them does not read could not be compared.
        self.lengths = [length for length in dict.fromkeys(lengths) if all(length in one for one in made)]
        self.runs: dict[str, list[timing.Run]] = {}
        for length in self.lengths:
            for name, count in (("row", 1), ("batch", batch_size)):
                self.runs[f"{name} {length}"] = [
                    _run(one, of[length], count) for one, of in zip(predictors, made, strict=True)
                ]
        if self.given:
            self.runs[_OWN] = [_run(predictor, self.given, 1) for predictor in predictors]
        if not self.runs:
            raise UserError(f"no rows of {', '.join(map(str, lengths))} tokens could be made; name other lengths")
        self.repeats = {name: 1 if name.startswith("batch") else _REPEATS for name in self.runs} | {
            _OWN: len(self.given)
        }

    def batches(self, model: int) -> list[list[Row]]:
        """What a model is given where its memory is measured: the largest batch that is timed."""
        if not self.lengths:
            return [self.given]
        return [self.rows[model][max(self.lengths)][: self.batch_size]]

    def measured(self, model: int, of: Measured, times: dict[str, list[list[float]]]) -> Measured:
        """A model with its times."""
        data = self.predictors[model].model.data
        at = []
        for length in self.lengths:
            row_ms = [_MS * t for t in times[f"row {length}"][model]]
            batch = median(times[f"batch {length}"][model])
            tokens = fmean(rows.tokens_of(data, row) for row in self.rows[model][length])
            at.append(AtLength(length, tokens, *_percentiles(row_ms), self.batch_size / batch))
        own = None
        if self.given:
            row_ms = [_MS * t for t in times[_OWN][model]]
            count = len(self.given)
            mean = fmean(median(row_ms[i::count]) for i in range(count))
            tokens = fmean(rows.tokens_of(data, row) for row in self.given)
            own = OnRows(count, tokens, mean, *_percentiles(row_ms))
        if self.lengths:  # the length nearest to 64, at which models are usually compared
            nearest = min(self.lengths, key=lambda length: abs(length - 64))
            row = self.rows[model][nearest][0]
        else:
            row = self.given[0]
        tokens_of_row = rows.tokens_of(data, row)
        macs = size.macs(self.predictors[model], row)
        return replace(
            of,
            at_lengths=tuple(at),
            on_rows=own,
            macs_per_token=macs / tokens_of_row if macs else None,
            macs_length=tokens_of_row,
        )


def _run(predictor: Predictor, given: Sequence[Row], count: int) -> timing.Run:
    def run(call: int) -> Any:
        start = call * count % len(given)
        return list(predictor.stream(given[start : start + count]))

    return run


def _made(predictor: Predictor, given: list[Row], lengths: Sequence[int], count: int) -> dict[int, list[Row]]:
    data = predictor.model.data
    samples = given or [rows.made_row(data)] * count
    made = {length: rows.of_length(data, samples, length, count) for length in dict.fromkeys(lengths)}
    return {length: found for length, found in made.items() if found}


def _sized(name: str, home: Path, predictor: Predictor, data: str | None, trust: tuple[str, ...]) -> Measured:
    parameters, nonzero = size.parameters(predictor.model)
    weights, whole = size.file_bytes(home)
    task = str(predictor.model.record.get("task", type(predictor.model.head).__name__))
    sized = Measured(name, task, parameters, nonzero, weights, whole, None, 0, None, ())
    if data is None:
        return sized
    metric, value, mode = quality.metric(load(home, trust=trust), data)  # anew: testing may change what is timed
    return replace(sized, metric=metric, value=value, mode=mode)


def _task(predictor: Predictor) -> tuple[str, str]:
    record = predictor.model.record
    return type(predictor.model.head).__name__, str(record["data"]["class_path"])


def _check(models: Sequence[str | Path], lengths: Sequence[int], batch_size: int, threads: int, seconds: float) -> None:
    if not models:
        raise UserError("there is no model to measure; name a model directory")
    for name, value in (("threads", threads), ("batch_size", batch_size), *(("lengths", one) for one in lengths)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise UserError(f"seconds must be above 0, got {seconds:g}")


def _check_tasks(homes: Sequence[Path], predictors: Sequence[Predictor]) -> None:
    first = _task(predictors[0])
    for home, predictor in zip(homes, predictors, strict=True):
        if _task(predictor) != first:
            raise UserError(
                f"{homes[0]} is a model of {first[0]}, {home} one of {_task(predictor)[0]}, and no rows measure both; "
                "compare models of one task, or leave the data out"
            )


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    half, most = np.percentile(values, (50, 95))
    return float(half), float(most)
