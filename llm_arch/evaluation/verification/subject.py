"""What is verified: a model with its data, and a few of the user's own rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from llm_arch.data.batching import Indices
from llm_arch.data.corpus import CorpusData
from llm_arch.data.loader import Columns, RowNumbers
from llm_arch.data.module import DataModule
from llm_arch.data.splits import Split
from llm_arch.seeding import mix
from llm_arch.task import Task, WritesTexts
from llm_arch.types import Batch

ROWS = 12  # that a check looks at
TOKENS = 768  # that they have together, where there are rows so short
CANDIDATES = 256  # rows among which they are chosen


@dataclass(frozen=True)
class Subject:
    """A model and its data, built as a run would build them.

    Args:
        build: builds task and data module anew, as a new process would after the seed was set.
        folder: a folder for what checks write; removed by who made it.
        seed: seed of the run.
        callbacks: the run's own callbacks, which training in checks uses too.
        accumulation: micro-batches a step in such training.
        clip: largest norm of the gradient in it.
        command: a command line that trains on one rank of two, see `processes`; None where there is none.
        max_near_duplicates: share of the rows outside of training that may be near-duplicates of others.
    """

    build: Callable[[], tuple[Task, DataModule]]
    folder: Path
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    accumulation: int = 1
    clip: float | None = 1.0
    command: Sequence[str] | None = None
    max_near_duplicates: float = 1.0
    kept: dict[str, Any] = field(default_factory=dict)  # what one check leaves to another

    def built(self) -> tuple[Task, DataModule]:
        """Task and data, made anew."""
        L.seed_everything(self.seed, verbose=False)
        task, data = self.build()
        if isinstance(data, CorpusData):  # its pieces are as long as one likes; of rows the short ones are chosen
            data.max_length = min(data.max_length, TOKENS // ROWS)
        if isinstance(data, WritesTexts):
            data.suit(task.backbone)
        return task, data

    @cached_property
    def _pair(self) -> tuple[Task, DataModule]:
        return self.built()

    @property
    def data(self) -> DataModule:
        """The data module with all its rows."""
        return self._pair[1]

    def task(self) -> Task:
        """A copy of the untrained task, which a check may change, in training mode."""
        return self.ready(copy.deepcopy(self._pair[0]), self.data)

    @staticmethod
    def ready(task: Task, data: DataModule) -> Task:
        """The task, told how the data's tokens become texts: what a run tells it at its start."""
        if isinstance(data, WritesTexts):
            task.head.read_as(data.detokenizer)
        return task

    # Rows

    def rows(self, count: int = ROWS, split: str = "train") -> list[int]:
        """Numbers of some rows of a split: chosen by chance, with a few tokens together if there are such rows."""
        lengths = self.data.split(split).lengths
        order = np.random.default_rng(mix(self.seed, len(lengths))).permutation(len(lengths))[:CANDIDATES]
        count = min(count, len(order))
        shortest = np.sort(lengths[order])
        chosen: list[int] = []
        left = TOKENS
        for row in order.tolist():
            missing = count - len(chosen)
            if missing and lengths[row] + int(shortest[: missing - 1].sum()) <= left:
                chosen.append(row)
                left -= int(lengths[row])
        # Where even the shortest have more tokens together, these are taken.
        short = order[np.argsort(lengths[order], kind="stable")].tolist()
        return [*chosen, *(row for row in short if row not in chosen)][:count]

    def columns(self, rows: Sequence[int], split: str = "train") -> dict[str, Any]:
        """What `collate` takes of some rows of a split."""
        part = self.data.split(split)
        return Columns(part.rows, part.chosen).__getitems__(RowNumbers(rows))

    def batch(self, rows: Sequence[int], layout: str | None = None, split: str = "train") -> Batch:
        """Some rows as a batch.

        Args:
            rows: their numbers in the split.
            layout: flat or padded; None for the data module's own.
            split: which split.
        """
        data = copy.copy(self.data)
        data.layout = layout or data.layout  # type: ignore[assignment]
        return data.collate(self.columns(rows, split))

    def part(self, rows: Sequence[int], split: str = "train", **settings: Any) -> DataModule:
        """The data module with these rows alone, in the order of their numbers, and no other split.

        Args:
            rows: their numbers in the split.
            split: which split.
            **settings: attributes of the data module to set, such as `batch_size`.
        """
        return part_of(self.data, rows, split, **settings)


def part_of(data: DataModule, rows: Sequence[int], split: str = "train", **settings: Any) -> DataModule:
    """A data module with some of its rows; see `Subject.part`."""
    whole = data.split(split)
    places: Indices = np.sort(np.asarray(rows, dtype=np.int64))
    chosen = places if whole.chosen is None else whole.chosen[places]
    part: Split = replace(whole, chosen=chosen, lengths=whole.lengths[places])
    small = copy.copy(data)
    small.trainer = None
    small._splits = {split: part}
    for name, value in ({"num_workers": 0} | settings).items():
        setattr(small, name, value)
    return small
