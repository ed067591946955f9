"""One process, and two that share the work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import SGD

from llm_arch.evaluation.verification import runs
from llm_arch.evaluation.verification.base import Check, Outcome, at_most, skip
from llm_arch.evaluation.verification.exactness import relative
from llm_arch.evaluation.verification.subject import Subject, part_of
from llm_arch.schedules import Constant

BOUND = 1e-5
RANKS, BATCH = 2, 3
_SECONDS = 300  # that the two may take
# What would tell Lightning of another cluster than the two.
_OTHERS = ("SLURM_", "TORCHELASTIC_", "LSB_", "KUBERNETES_", "PMI_", "OMPI_")


class Processes(Check):
    """Two processes compute the losses and the gradient of one."""

    promise = "loss and gradient: 1 = 2 processes"

    def run(self, subject: Subject) -> Outcome:
        """Compare with one process that takes as many micro-batches a step; dropout is on, weights stay as they are."""
        if subject.command is None:
            return skip("not asked for")
        if len(subject.rows()) < 2 * BATCH:
            return skip(f"there are fewer than {2 * BATCH} training rows")
        if fault := _launched(subject.command, subject.folder):
            return Outcome("fail", None, "", fault)
        step(subject, 1)
        one, *two = (_read(subject.folder, ranks, rank) for ranks, rank in ((1, 0), (2, 0), (2, 1)))
        pairs = [(one[0][i], two[i % RANKS][0][i // RANKS]) for i in range(len(one[0]))]
        loss = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
        gradient = max(relative(one[1], other[1]) for other in two)
        said = f"relative difference: loss {loss:.1e}, gradient {gradient:.1e}, with dropout"
        return at_most(max(loss, gradient), BOUND, said)


def step(subject: Subject, ranks: int) -> None:
    """Take the steps that are compared, as this process's share of them, and write what came out."""
    task, data = subject.built()
    subject.ready(task, data)
    task.optimizer_callable = partial(SGD, lr=0.0)
    task.lr_scheduler = Constant(0)
    follow = _Follow()
    options: dict[str, Any] = {"accumulate_grad_batches": RANKS // ranks, "gradient_clip_val": None, "max_epochs": 1}
    if ranks > 1:
        options |= {"strategy": "ddp", "devices": ranks}
    small = part_of(data, subject.rows(), batch_size=BATCH, max_tokens=None)
    trainer = runs.fit(subject, task, small, [follow], None, **options)
    name = subject.folder / f"{ranks}_{trainer.global_rank}"
    save_file({"gradient": follow.gradient_P}, name.with_suffix(".safetensors"))
    name.with_suffix(".json").write_text(json.dumps(follow.losses), encoding="utf-8")


class _Follow(Callback):
    """The loss of each micro-batch of this process, and the gradients of all steps, one behind the other."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_P = torch.zeros(0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        optimizer.register_step_post_hook(lambda *_: self._keep(pl_module))

    def _keep(self, task: L.LightningModule) -> None:
        found = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
        self.gradient_P = torch.cat([self.gradient_P, *found]).detach().clone()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)  # Lightning has divided by it


def _launched(command: Any, folder: Path) -> str | None:
    """Run two processes until both have ended; what went wrong, or None."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(_OTHERS)}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(RANKS), "NODE_RANK": "0"}
    base |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "LLM_ARCH_OUTPUT": str(folder)}
    logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
    started = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                own = base | {"LOCAL_RANK": str(rank), "RANK": str(rank)}
                started.append(subprocess.Popen([*command, str(folder)], env=own, stdout=file, stderr=file))
        for process in started:
            process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the two processes took more than {_SECONDS} s"
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
    for rank, process in enumerate(started):
        if process.returncode:
            lines = logs[rank].read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
            return f"process {rank} of 2 ended with code {process.returncode}: {lines[-1]}"
    return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _read(folder: Path, ranks: int, rank: int) -> tuple[list[float], Tensor]:
    """Losses and gradients that a process wrote."""
    name = folder / f"{ranks}_{rank}"
    losses: list[float] = json.loads(name.with_suffix(".json").read_text(encoding="utf-8"))
    return losses, load_file(name.with_suffix(".safetensors"))["gradient"]
