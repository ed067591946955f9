"""Python programs in forks of the tests' own process, which has imported what takes a fresh one seconds to import."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

_POLL = 0.01  # seconds


class Fork:
    """As `subprocess.Popen([sys.executable, ...])`, in a fork.

    Args:
        command: Python, and what follows: `-c PROGRAM`, `-m MODULE` or a script; and arguments.
        cwd: where it runs.
        env: its environment; None for that of this process.
        stdout: a file to write to.
        stderr: a file to write to.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[Any],
        stderr: IO[Any],
    ) -> None:
        assert command[0] == sys.executable
        self.args, self.returncode = command, None
        for stream in (sys.stdout, sys.stderr, stdout, stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(list(command[1:]), cwd, env, stdout.fileno(), stderr.fileno())

    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            found, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            else:
                time.sleep(_POLL)
        return self.returncode

    def kill(self) -> None:
        """End it."""
        if self.returncode is None:
            os.kill(self.pid, 9)


# What a GPU runs has threads that no fork takes along.
Popen: Any = subprocess.Popen if torch.cuda.is_available() else Fork


def python(*arguments: str, cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *arguments])`: waits for what it has started and left behind, too.

    Args:
        arguments: of Python.
        cwd: where it runs.
        env: its environment.
        timeout: seconds that it may take.
    """
    said, readers, ends = ["", ""], [], []
    for place in range(2):
        here, there = os.pipe()
        ends.append(open(there, "w"))  # noqa: SIM115
        readers.append(threading.Thread(target=_read, args=(here, said, place), daemon=True))
    process = Popen([sys.executable, *arguments], cwd=cwd, env=env, stdout=ends[0], stderr=ends[1])
    for end, reader in zip(ends, readers, strict=True):
        end.close()
        reader.start()
    until = time.monotonic() + timeout
    try:
        process.wait(timeout)
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(process.args, timeout)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def _read(end: int, said: list[str], place: int) -> None:
    with open(end, encoding="utf-8", errors="replace") as file:
        said[place] = file.read()


def _become(
    arguments: list[str], cwd: str | Path | None, env: Mapping[str, str] | None, stdout: int, stderr: int
) -> NoReturn:
    """Be the program, and end."""
    code: Any = 1
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        _run(arguments)
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # whatever it is, it ends here and not in the tests
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> None:
    flag, *rest = arguments
    if flag == "-c":
        program, *rest = rest
        sys.argv, sys.path[:0] = ["-c", *rest], [os.getcwd()]
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    elif flag == "-m":
        module, *rest = rest
        sys.argv, sys.path[:0] = [module, *rest], [os.getcwd()]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = arguments, [str(Path(flag).resolve().parent)]
        runpy.run_path(flag, run_name="__main__")
