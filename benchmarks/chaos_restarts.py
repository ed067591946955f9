"""A killed process under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.measure import REPOSITORY

KILL_ONCE = """
import os, pathlib, signal
import lightning as L

class KillOnce(L.Callback):
    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 9 and not pathlib.Path("killed").exists():
            pathlib.Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def restarts(home: Path, rows: str) -> dict[str, Any]:
    """One of two processes under torchrun is killed; torchrun starts both again, and they go on."""
    where = home / "torchrun"
    where.mkdir()
    (where / "kill_once.py").write_text(KILL_ONCE)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("--max-restarts", "3", "-m", "llm_arch.cli.main", "fit", "-c", "task/text_classification"),
        *("-c", "backbone/tiny", "-c", "hardware/cpu", "-c", "hardware/ddp", "--data.train", rows),
        *("--data.batch_size", "4", "--trainer.max_epochs", "2", "--trainer.precision", "32-true", "--before", "false"),
        "--trainer.callbacks+=llm_arch.callbacks.checkpoint.Checkpoint",
        *("--trainer.callbacks.every_minutes", "0.0001", "--trainer.callbacks+=kill_once.KillOnce"),
    ]
    # Without it torch 2.13 keeps its store over restarts, and gloo finds the addresses of the processes that are gone.
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{where}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    weights, codes, killed = [], [], []
    for name in ("disturbed", "straight"):  # the second finds the mark of the first, and is left alone
        more = ["--output", name, "--resume", "auto"]
        with (where / f"{name}.log").open("w") as log:
            done = subprocess.run(
                [*command, *more], cwd=where, env=environment, stdout=log, stderr=log, check=False, timeout=3600
            )
        codes.append(done.returncode)
        killed.append((where / f"{name}.log").read_text().count("exitcode: -9"))
        file = where / name / "model" / "model.safetensors"
        weights.append(load_file(file) if file.is_file() else {})
    identical = bool(weights[0]) and all(torch.equal(weights[1][key], value) for key, value in weights[0].items())
    return {"codes": codes, "killed": bool(killed[0]) and (where / "killed").exists(), "identical": identical}
