"""How much memory predictions take, in a process that does nothing else."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_arch.types import UserError

_PROGRAM = "from llm_arch.evaluation.benchmark.memory import work; work()"
_SECONDS = 600  # that loading and predicting may take
# `ru_maxrss` counts kilobytes on Linux and bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_memory(
    model: Path, batches: Sequence[Sequence[Mapping[str, Any]]], threads: int, trust: Sequence[str] = ()
) -> int:
    """The most bytes that a fresh process holds while it predicts, with those of Python and libraries (some 300 MB).

    Args:
        model: a model directory.
        batches: rows to predict together, batch after batch.
        threads: of torch.
        trust: modules outside this package that the model may use.

    Raises:
        UserError: the process failed.
    """
    asked = {"model": str(model), "batches": batches, "threads": threads, "trust": list(trust)}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(asked, default=str),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{model}: the process that measures memory failed ({said[-1]})")
    return int(done.stdout.split()[-1])


def work() -> None:
    """Predict what stdin asks for, and print the bytes."""
    asked = json.load(sys.stdin)
    import torch

    from llm_arch.inference import Predictor

    torch.set_num_threads(asked["threads"])
    predictor = Predictor(asked["model"], device="cpu", trust=tuple(asked["trust"]))
    _forget()  # reading the files takes more for a moment
    for rows in asked["batches"]:
        list(predictor.stream(rows))
    print(_peak())


def _forget() -> None:
    with suppress(OSError):  # Linux knows how; elsewhere it is the peak since the process began
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    # Where there is one, not `ru_maxrss`: that begins with what the process held that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
