"""Runs that go through `torch.compile`: the same steps, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from llm_arch.callbacks.compilation import Compile
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []
        self.marked: list[Any] = []

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(outputs["loss"]))
        self.marked.append((task.backbone.model._compiled_call_impl is not None, task.head.compiled))


def on_a_gpu(callback: Compile) -> Compile:
    """As if the run were on one."""
    setup = callback.setup

    def pretend(trainer: Any, task: Any, stage: str) -> None:
        strategy = SimpleNamespace(root_device=torch.device("cuda"), strategy_name="single_device")
        setup(SimpleNamespace(strategy=strategy), task, stage)  # type: ignore[arg-type]

    callback.setup = pretend  # type: ignore[assignment, method-assign]
    return callback


@pytest.mark.filterwarnings("ignore")  # torch's, of our attention and dropout for CPUs
def test_the_steps_are_the_same_and_the_model_is_plain_afterwards(
    rows: Callable[..., Any], write_rows: Callable[..., str], tokenizer: str, tmp_path: Path
) -> None:
    found = []
    for callbacks in ([], [on_a_gpu(Compile("eager"))]):
        L.seed_everything(0, verbose=False)
        data = NextTokenData(
            write_rows(rows(40)),
            tokenizer=tokenizer,
            max_length=64,
            batch_size=8,
            validation_fraction=0.0,
            cache_dir=str(tmp_path),
        )
        task, losses = Task("tiny:gpt2", LanguageModel, LabelSpace(()), learning_rate=1e-3), Losses()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[losses, *callbacks],
            default_root_dir=str(tmp_path),
        )
        trainer.fit(task, datamodule=data)
        found.append(losses.seen)
        assert losses.marked == [(bool(callbacks), bool(callbacks))] * len(losses.seen)
        assert task.backbone.model._compiled_call_impl is None  # type: ignore[union-attr]
        assert not task.head.compiled
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("device", "strategy", "model", "why"),
    [
        ("cpu", "single_device", nn.Linear(1, 1), "Compile is for GPUs, and this run is on cpu.*leave it out"),
        ("cuda", "single_device", None, "Compile is for transformers, and SimpleNamespace is none; leave it out"),
        ("cuda", "fully_sharded", nn.Linear(1, 1), "weights that are spread over processes; take -c hardware/ddp"),
    ],
)
def test_where_it_does_not_help_it_says_so(device: str, strategy: str, model: Any, why: str) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device), strategy_name=strategy))
    task = SimpleNamespace(backbone=SimpleNamespace(model=model), head=None)
    with pytest.raises(UserError, match=why):
        Compile().setup(trainer, task, "fit")
    Compile().setup(trainer, task, "validate")
