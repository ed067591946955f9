"""A run keeps others out of its directory as long as its process lives, in whatever way that ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_arch.cli.main import main
from llm_arch.cli.occupied import Occupied, is_occupied
from llm_arch.types import UserError

HOLD = """
import os, sys, time
from pathlib import Path
from llm_arch.cli.occupied import Occupied
held = Occupied(Path(sys.argv[1]))
if sys.argv[2:] == ["worker"] and os.fork() == 0:
    time.sleep(60)
print("ready", flush=True)
sys.stdin.readline()
held.leave()
"""


@pytest.fixture
def start() -> Iterator[Any]:
    begun = []

    def run(directory: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(directory), *more]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in begun:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False, capture_output=True)
        process.communicate()


def test_one_at_a_time(start: Any, tmp_path: Path) -> None:
    assert not is_occupied(tmp_path)
    other = start(tmp_path)
    assert is_occupied(tmp_path)
    with pytest.raises(UserError, match=r"^--output .*: a run is at work there; wait for it, stop it, or name another"):
        Occupied(tmp_path)
    other.communicate("go\n")
    assert not is_occupied(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Occupied(tmp_path).leave()


def test_killed(start: Any, tmp_path: Path) -> None:
    """Nothing is left of a lock, though a worker of the killed process lives on."""
    other = start(tmp_path, "worker")
    other.kill()
    other.wait()
    assert not is_occupied(tmp_path)
    Occupied(tmp_path).leave()


def test_a_second_run(start: Any, fit: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--before", "false").code == 0
    files = {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()}
    other = start(here / "out")
    for how in (("--resume", "auto"), ("--overwrite",)):
        assert fit(*how).sentence == (
            "--output out: a run is at work there; wait for it, stop it, or name another directory"
        )
    assert {path: path.read_bytes() for path in files} == files
    capsys.readouterr()
    assert main(["runs", "out"]) == 0
    assert "running" in capsys.readouterr().out
    other.communicate("go\n")
    assert fit("--resume", "auto").code == 0
    assert main(["runs", "out"]) == 0
    assert "finished" in capsys.readouterr().out
