"""How long a row takes before and after compression, measured in turns once a run has ended."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from llm_arch.data.module import DataModule
from llm_arch.evaluation.benchmark.in_turns import milliseconds_a_row
from llm_arch.inference import Predictor
from llm_arch.inference.directory import Model, load
from llm_arch.task import Task

_ROWS = 32


def times(task: Task, data: DataModule, start: str | None, split: str | None) -> tuple[float, float] | None:
    """Milliseconds a row before and after; None where rows of this kind are not predicted from texts.

    Args:
        task: the compressed model.
        data: its rows.
        start: the model that was compressed; None where the run began with a backbone, whose shape is timed then.
        split: which rows; None for those of training.
    """
    source = data.sources.get(split or "train", data.sources["train"])
    rows = list(islice((row.values for row in data.source(source).rows() if not row.fault), _ROWS))
    if not rows:
        return None
    modes = {part: part.training for part in task.modules()}
    task.eval()
    after = Predictor(Model(Path(), task.backbone, task.head, data, {}), device="cpu")
    if start is not None:
        before = Predictor(load(start), device="cpu")
    else:
        whole: Any = task.backbone
        twin = whole.dense_twin() if hasattr(whole, "dense_twin") else whole
        before = Predictor(Model(Path(), twin.eval(), task.head, data, {}), device="cpu")
    try:
        found = milliseconds_a_row([before, after], rows)
    except NotImplementedError:  # heads of pretraining predict nothing
        return None
    finally:
        for part, mode in modes.items():
            part.training = mode
    return found[0], found[1]
