"""The short version of `benchmarks/chaos.py`: killed at random moments, a run ends with the same bits all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KILLS = 6
# Shorter runs than of the whole benchmark.
PROGRAM = "from benchmarks import chaos, chaos_attempt as one; one.ROWS, one.EPOCHS = 60, 3; chaos.main()"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="kills by CPU time, which it reads from /proc")
def test_killed_at_random_moments():
    command = [sys.executable, "-c", PROGRAM, "--kills", str(KILLS), "--only", "kills", "--print"]
    environment = {key: value for key, value in os.environ.items() if key != "LLM_ARCH_CACHE"}
    done = subprocess.run(
        [*command, "--seed", "3"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["kills"]
    assert sum(one["kills"] for one in found.values()) == KILLS
    for name, one in found.items():
        assert one["errors"] == [], name
        assert one["steps_back"] == 0, name
        assert one["identical"] == one["finished"] >= 1, name
