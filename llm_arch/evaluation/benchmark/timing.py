"""Timing of several models side by side, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Run = Callable[[int], Any]
"""Does what is timed; told how often it was called before, so that it may take another row each time."""

_FEWEST_ROUNDS = 3


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Let torch, and the tokenizer of several texts, work on so many threads within the block."""
    before, parallel = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    torch.set_num_threads(threads)
    if threads == 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if parallel is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel


def clock_of(device: torch.device, threads: int) -> tuple[Callable[[], float], str]:
    """A clock in seconds and its name: the process's CPU time where one thread does all, else the wall's."""
    if device.type == "cpu" and threads == 1:
        return time.process_time, "cpu"
    return time.perf_counter, "wall"


def round_robin(
    jobs: Mapping[str, Sequence[Run]],
    repeats: Mapping[str, int],
    seconds: float,
    clock: Callable[[], float],
    advance: Callable[[float], None],
) -> dict[str, list[list[float]]]:
    """Time jobs of several models in turn, until the time is over: each job of one model, then of the next.

    The first call of each turn is not counted: it brings the model back into the processor's caches. Nor is the first
    round, in which kernels are made for every shape.

    Args:
        jobs: by name, what each model does.
        repeats: by name, how often it is timed each turn.
        seconds: that all of it may take; three rounds are made in any case.
        clock: gives seconds.
        advance: told now and then the share in [0, 1] that is done.

    Returns:
        By name, for each model the seconds of every counted call, in order.
    """
    found: dict[str, list[list[float]]] = {name: [[] for _ in runs] for name, runs in jobs.items()}
    began = time.perf_counter()
    rounds = 0
    while rounds <= _FEWEST_ROUNDS or time.perf_counter() - began < seconds:
        for place, (name, runs) in enumerate(jobs.items()):
            for model, run in enumerate(runs):
                calls = range(rounds * repeats[name], (rounds + 1) * repeats[name])
                run(calls[0])
                for call in calls:
                    start = clock()
                    run(call)
                    if rounds:
                        found[name][model].append(clock() - start)
            by_rounds = (rounds + (place + 1) / len(jobs)) / (_FEWEST_ROUNDS + 1)
            advance(min(by_rounds, max((time.perf_counter() - began) / max(seconds, 1e-9), 0.0), 1.0))
        rounds += 1
    advance(1.0)
    return found
