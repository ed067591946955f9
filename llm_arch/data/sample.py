"""Some training rows as batches, for what is measured of a model beside its training."""

from __future__ import annotations

import copy
from itertools import islice

from llm_arch.data.module import DataModule
from llm_arch.types import Batch, UserError


def sample(data: DataModule, rows: int) -> list[Batch]:
    """The first batches of the first epoch that hold so many rows together, wherever a trainer stands, on the CPU.

    A pure function of the seed of the run, and the same on every rank. The last batch may have a few rows more.

    Args:
        data: with training rows.
        rows: at least so many, where there are as many; at least 1.

    Raises:
        UserError: rows is less than 1.
    """
    if rows < 1:
        raise UserError(f"at least 1 row is needed, got {rows}")
    alone = copy.copy(data)
    alone.trainer, alone.num_workers = None, 0
    found: list[Batch] = []
    for batch in islice(alone.train_dataloader(), rows):
        found.append(batch)
        rows -= batch.rows
        if rows <= 0:
            break
    return found
