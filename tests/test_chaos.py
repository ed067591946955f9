"""The short version of `benchmarks/chaos.py`: killed at random moments, a run ends with the same bits all the same."""

import json
import os
from pathlib import Path

import pytest
from warm import python

ROOT = Path(__file__).parent.parent
KILLS = 3  # one of each setting
# Shorter runs than of the whole benchmark.
PROGRAM = "from benchmarks import chaos, chaos_attempt as one; one.ROWS, one.EPOCHS = 40, 2; chaos.main()"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="kills by CPU time, which it reads from /proc")
def test_killed_at_random_moments() -> None:
    command = ["-c", PROGRAM, "--kills", str(KILLS), "--only", "kills", "--print", "--seed", "3"]
    environment = {key: value for key, value in os.environ.items() if key != "LLM_ARCH_CACHE"}
    done = python(*command, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["kills"]
    assert sum(one["kills"] for one in found.values()) == KILLS
    for name, one in found.items():
        assert one["errors"] == [], name
        assert one["steps_back"] == 0, name
        assert one["identical"] == one["finished"] >= 1, name
