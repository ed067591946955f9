"""Two or more models at the same rows, one after another, in turns: what is faster, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

import torch

from llm_arch.evaluation.benchmark import timing
from llm_arch.evaluation.benchmark.rows import Row
from llm_arch.inference import Predictor

_MS = 1e3


def milliseconds_a_row(
    predictors: Sequence[Predictor],
    rows: Sequence[Row],
    *,
    seconds: float = 3.0,
    advance: Callable[[float], None] = lambda share: None,
) -> list[float]:
    """For each model the milliseconds that a row takes, from text to prediction, one by one, on average over rows.

    CPU time on one thread, else time on the wall.

    Args:
        predictors: the models.
        rows: what they predict, each at its own length.
        seconds: that it may take; more where three rounds take longer.
        advance: told now and then the share in [0, 1] that is done.
    """
    clock, _ = timing.clock_of(predictors[0].device, torch.get_num_threads())

    def run(predictor: Predictor) -> timing.Run:
        return lambda call: list(predictor.stream([rows[call % len(rows)]]))

    jobs = {"rows": [run(predictor) for predictor in predictors]}
    times = timing.round_robin(jobs, {"rows": len(rows)}, seconds, clock, advance)["rows"]
    count = len(rows)
    return [_MS * fmean(median(found[i::count]) for i in range(count)) for found in times]
