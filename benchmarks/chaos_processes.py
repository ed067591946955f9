"""Forks that may die: their exit codes, CPU time and last words, and whether two of them ended alike."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from llm_arch.callbacks.preemption import Preempted

DONE, FAILED, PREEMPTED = 0, 1, 75


def fork(work: Callable[[], None], log: Path) -> int:
    """Do something in a copy of this process, its output in a file; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = DONE
    except Preempted:
        code = PREEMPTED
    except BaseException:  # whatever it is, the parent has to hear of it
        with suppress(OSError):
            log.with_suffix(".error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def wait(pid: int, until: Callable[[], bool] | None = None) -> int | None:
    """The exit code of a process, or None where it still runs when something has come true."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG if until is not None else 0)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and until():
            return None
        time.sleep(0.002)


def spent(pid: int) -> float:
    """CPU seconds of a process so far: what else the machine does plays no part."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_spent(pid: int, seconds: float) -> Callable[[], bool]:
    """Whether a process has spent so many CPU seconds."""
    return lambda: spent(pid) >= seconds


def error_of(log: Path) -> str:
    """The last line of what an attempt died of."""
    path = log.with_suffix(".error")
    lines = path.read_text().replace(f"{log.parent}/", "").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "died without a word"


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same weights, bit for bit."""
    found, expected = (torch.load(path, weights_only=True) for path in (one, other))
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def alone(folder: Path, attempt: Callable[[Path], None]) -> tuple[Path, float]:
    """One attempt from beginning to end: its final weights and its CPU seconds."""
    folder.mkdir(parents=True)

    def measured() -> None:
        attempt(folder)
        (folder / "seconds").write_text(str(time.process_time()))

    if wait(fork(measured, folder / "log")) != DONE:
        raise SystemExit(f"the undisturbed run failed: {error_of(folder / 'log')}")
    return folder / "final.pt", float((folder / "seconds").read_text())
