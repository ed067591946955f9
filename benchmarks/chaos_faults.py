"""Checkpoints cut off, a disk without room, and SIGTERM."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.chaos_attempt import SETTINGS, fit, undisturbed
from benchmarks.chaos_processes import DONE, FAILED, PREEMPTED, error_of, fork, has_spent, same, spent, wait
from llm_arch.checkpoints import DurableCheckpointIO, newest, step_of
from llm_arch.types import UserError


def truncations(home: Path, rows: str, draw: random.Random, count: int = 50) -> dict[str, Any]:
    """The newest checkpoint cut off at random bytes."""
    where = home / "cut"
    reference, _ = undisturbed(where, rows, SETTINGS[1])
    # A run that was killed half-way.
    half = where / "half"
    half.mkdir()
    pid = fork(lambda: fit(half, rows, SETTINGS[1]), half / "log")
    wait(pid, (half / "checkpoints" / "previous.ckpt").exists)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    first, _ = newest(half / "checkpoints")
    assert first is not None
    whole = first.read_bytes()
    loaded = ended = resumed = 0
    for number in range(count):
        first.write_bytes(whole[: draw.randrange(len(whole))])
        found, damaged = newest(half / "checkpoints")
        if found is not None and found != first and len(damaged) == 1:
            state = DurableCheckpointIO().load_checkpoint(found)
            loaded += bool(torch.isfinite(torch.stack([v.sum() for v in state["state_dict"].values()])).all())
        if number % 10 == 0:  # and all the way to the end
            copy = where / f"copy{number}"
            shutil.copytree(half, copy)
            resumed += 1
            if wait(fork(lambda copy=copy: fit(copy, rows, SETTINGS[1]), copy / "log")) == DONE:  # type: ignore[misc]
                ended += same(copy / "final.pt", reference)
    return {"cuts": count, "previous_loaded": loaded, "resumed_to_the_end": resumed, "identical": ended}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str]:
    """A file system of so many bytes, or None where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    try:
        yield "tmpfs" if mounted.returncode == 0 else "file size limit"
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(home: Path, rows: str) -> dict[str, Any]:
    """A disk that has no room for one more checkpoint."""
    where = home / "full"
    reference, _ = undisturbed(where, rows, SETTINGS[0])
    size = (where / "reference" / "checkpoints" / "last.ckpt").stat().st_size
    with small_disk(where / "disk", int(2.6 * size)) as kind:
        folder = where / "disk" / "run"
        folder.mkdir()

        def attempt() -> None:
            if kind != "tmpfs":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
            fit(folder, rows, SETTINGS[0])

        code = wait(fork(attempt, where / "log"))
        error = error_of(where / "log")
        found, damaged = newest(folder / "checkpoints")
        step = step_of(found) if found is not None else None
        after = where / "after"  # the same files where there is room
        shutil.copytree(folder, after)
        identical = wait(fork(lambda: fit(after, rows, SETTINGS[0]), after / "log")) == DONE and same(
            after / "final.pt", reference
        )
        return {
            "kind": kind,
            "failed": code == FAILED and UserError.__name__ in error,
            "error": error.replace(str(home), "DIR"),
            "resumes_from_step": step,
            "damaged_files": len(damaged),
            "identical": identical,
        }


def terminations(home: Path, rows: str, draw: random.Random, count: int = 20) -> dict[str, Any]:
    """SIGTERM at random moments of training: seconds until the process is gone, with its state saved."""
    where = home / "term"
    reference, seconds = undisturbed(where, rows, SETTINGS[1])
    took: list[float] = []
    codes: list[int | None] = []
    finished = identical = chain = 0
    while len(took) < count:
        folder = where / f"chain{chain}"
        folder.mkdir()
        code: int | None = PREEMPTED
        while code == PREEMPTED:
            (folder / "begun").unlink(missing_ok=True)
            pid = fork(lambda folder=folder: fit(folder, rows, SETTINGS[1]), folder / "log")  # type: ignore[misc]
            code = wait(pid, (folder / "begun").exists)
            if code is None:
                more = len(took) < count
                code = wait(pid, has_spent(pid, spent(pid) + draw.uniform(0, seconds / 2)) if more else None)
            if code is None:
                begun = time.monotonic()
                os.kill(pid, signal.SIGTERM)
                code = wait(pid)
                if code == PREEMPTED:
                    took.append(time.monotonic() - begun)
                codes.append(code)
        chain += 1
        if code == DONE:
            finished += 1
            identical += same(folder / "final.pt", reference)
    return {
        "sent": len(codes),
        "saved_and_exit_75": len(took),
        "median_seconds": round(statistics.median(took), 3),
        "most_seconds": round(max(took), 3),
        "runs_finished": finished,
        "identical": identical,
    }
