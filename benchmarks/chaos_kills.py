"""SIGKILLs at random moments of the CPU time that a whole run takes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chaos_attempt import SETTINGS, fit, position, undisturbed
from benchmarks.chaos_processes import DONE, error_of, fork, has_spent, same, wait


@dataclass
class Tally:
    """What happened over all attempts.

    Attributes:
        kills: attempts that were killed.
        finished: chains that came to their end.
        identical: of these, with the weights of the undisturbed run.
        errors: what attempts died of that nobody killed.
        steps_back: resumed from an earlier step than the attempt before.
    """

    kills: int = 0
    finished: int = 0
    identical: int = 0
    errors: list[str] = field(default_factory=list)
    steps_back: int = 0


def kill_at_random(
    home: Path,
    reference: Path,
    seconds: float,
    kills: int,
    draw: random.Random,
    attempt: Callable[[Path], None],
    position: Callable[[Path], int],
    give_way: Callable[[Path], bool] = lambda folder: False,
) -> Tally:
    """Kill attempts at random moments until there are so many kills, then let the last chain end.

    Args:
        home: where the chains lie.
        reference: the weights they should end with.
        seconds: the CPU seconds of an undisturbed run.
        kills: how many.
        draw: the source of moments.
        attempt: goes on with the run of a folder.
        position: the step that it goes on from.
        give_way: makes a chain usable whose attempt failed, where that is possible.
    """
    tally, chain = Tally(), 0
    while True:
        folder = home / f"chain{chain}"
        folder.mkdir(parents=True)
        step = 0
        while True:
            now = position(folder)
            tally.steps_back += now < step
            step = now
            pid = fork(lambda folder=folder: attempt(folder), folder / "log")  # type: ignore[misc]
            code = wait(pid, has_spent(pid, draw.uniform(0, seconds)) if tally.kills < kills else None)
            if code is None:
                time.sleep(draw.uniform(0, 0.03))  # waiting for the disk takes no CPU time
                os.kill(pid, signal.SIGKILL)
                code = wait(pid)
                if code == -signal.SIGKILL:
                    tally.kills += 1
                    continue
            if code != DONE:
                tally.errors.append(error_of(folder / "log"))
                if give_way(folder):
                    continue
            break
        if code == DONE:
            tally.finished += 1
            tally.identical += same(folder / "final.pt", reference)
        shutil.rmtree(folder)
        chain += 1
        if tally.kills >= kills:
            return tally


def kills(home: Path, rows: str, count: int, draw: random.Random) -> dict[str, Any]:
    """Random SIGKILLs, shared by the settings."""
    found = {}
    for number, setting in enumerate(SETTINGS):
        share = count // len(SETTINGS) + (number < count % len(SETTINGS))
        where = home / f"kills{number}"
        reference, seconds = undisturbed(where, rows, setting)
        attempt = partial(fit, rows=rows, setting=setting)
        tally = kill_at_random(where, reference, seconds, share, draw, attempt, position)
        found[setting.name] = {**vars(tally), "cpu_seconds_a_run": round(seconds, 2)}
    return found
