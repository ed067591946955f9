"""Overlays for hardware that a test machine lacks: what they ask for, and what they say where it is missing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from warm import python

from llm_arch.cli.main import main
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace

ROOT = Path(__file__).parent.parent / "configs" / "hardware"
FIT = ("fit", "-c", "task/text_classification", "-c", "backbone/tiny")

# Goes away after two steps, as SLURM would have it before the time is up.
TOLD = """
import os, signal
import lightning as L

class Told(L.Callback):
    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_slurm(tmp_path: Path) -> None:
    """Told by a signal it saves, is queued again by `scontrol`, and leaves with code 75."""
    (tmp_path / "told.py").write_text(TOLD)
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    slurm = {
        **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "llm_arch", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"},
        **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"},
        **{"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1", "MASTER_PORT": "0"},
    }
    path = f"{fake.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["-m", "llm_arch.cli.main", *FIT, "-c", "hardware/slurm", "--before", "false"]
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    command += [*options, "--trainer.callbacks+=told.Told", "--output", "out", "--resume", "auto"]
    done = python(*command, cwd=tmp_path, env=os.environ | slurm | {"PATH": path}, timeout=600)
    assert done.returncode == 75, done.stderr[-3000:]
    assert "SIGUSR1: stopped after step 3" in " ".join(done.stdout.split())
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    saved = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert not list((tmp_path / "out").glob("hpc*"))  # Lightning's own handler stayed out


def test_the_batch_file_fits_the_overlay() -> None:
    text = (ROOT / "slurm.sbatch").read_text()
    assert text.startswith("#!/bin/bash\n")
    for needed in ("--signal=SIGUSR1@90", "--requeue", "--open-mode=append", "-c hardware/slurm", "--resume auto"):
        assert needed in text
    assert subprocess.run(["bash", "-n", str(ROOT / "slurm.sbatch")], check=False).returncode == 0
    overlay = yaml.safe_load((ROOT / "slurm.yaml").read_text())["trainer"]
    assert overlay["plugins"][0]["init_args"] == {"auto_requeue": False}
    assert overlay["callbacks+"][0]["init_args"] == {"requeue": True}


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="for machines without deepspeed")
def test_deepspeed_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "-c", "hardware/deepspeed", "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "strategy deepspeed_stage_2 needs the package deepspeed: pip install deepspeed, or take -c hardware/" in said
    assert not Path("out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "-c", "hardware/gpu", "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("llm-arch: error: trainer: ")
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_an_engine_that_hides_gradients_gets_scaled_losses(
    rows: Any, write_rows: Callable[..., str], tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's loss goes backward as the mean over all ranks: the same weights as with gradients scaled late."""
    import lightning as L

    from llm_arch.data.classification import TextClassificationData
    from llm_arch.heads.classification import SequenceClassification

    def fit() -> dict[str, torch.Tensor]:
        L.seed_everything(1, verbose=False)
        data = TextClassificationData(write_rows(rows(16)), tokenizer=tokenizer, batch_size=4, validation_fraction=0.0)
        task = Task("tiny:bert", SequenceClassification, LabelSpace(("off", "on")), learning_rate=0.01)
        trainer = Trainer(
            **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
            **{"accelerator": "cpu", "precision": "32-true", "default_root_dir": str(tmp_path)},
        )
        trainer.fit(task, datamodule=data)
        return task.state_dict()

    expected = fit()
    monkeypatch.setattr(Task, "_engine_steps", True)
    for name, value in fit().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
