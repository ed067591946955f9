"""How good a model is: the metric of its head on rows with labels."""

from __future__ import annotations

from typing import Literal

from llm_arch.inference.directory import Model
from llm_arch.trainer import Trainer


def metric(model: Model, data: str, *, precision: str | None = None) -> tuple[str, float, Literal["min", "max"]]:
    """The metric's name, its value on all rows, and whether more of it is better or less.

    Args:
        model: as loaded; testing may change it, so one of which nothing else is measured.
        data: rows with labels, as for `llm-arch test`.
        precision: Lightning's; None for the fastest here.
    """
    trainer = Trainer(
        logger=False, enable_checkpointing=False, devices=1, enable_progress_bar=False, precision=precision
    )
    (result,) = trainer.test(model.task(), datamodule=model.data_for(test=data), verbose=False)
    head = model.head
    return head.major, float(result[f"test/{head.major}"]), head.mode
