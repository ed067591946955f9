"""Loaders whose batches follow a plan, and whose position is read off the trainer instead of being saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from llm_arch.data.batching import Indices
from llm_arch.types import Batch


class Rows(Protocol):
    """Memory-mapped rows: a list of row numbers, which may be `RowNumbers`, gives columns."""

    def __getitem__(self, rows: list[int]) -> dict[str, list[Any]]: ...

    def __len__(self) -> int: ...


class RowNumbers(list[int]):
    """Row numbers of one batch, and the epoch they are read in: data may differ from epoch to epoch.

    Args:
        numbers: row numbers in their split.
        epoch: the epoch, from 0; 0 in evaluation.
    """

    def __init__(self, numbers: Iterable[int], epoch: int = 0) -> None:
        super().__init__(numbers)
        self.epoch = epoch


class Columns(Dataset[dict[str, Any]]):
    """A split as a torch data set that fetches a whole batch at once.

    Args:
        rows: the memory-mapped rows.
        chosen: (N,) which of them belong to the split, or None for all.
    """

    def __init__(self, rows: Rows, chosen: Indices | None) -> None:
        self.rows = rows
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Columns of these rows, with their numbers in the split as `index`, and the `epoch`, a single number."""
        epoch = getattr(indices, "epoch", 0)
        places = indices if self.chosen is None else RowNumbers(self.chosen[indices].tolist(), epoch)
        return {**self.rows[places], "index": indices, "epoch": epoch}


@dataclass(frozen=True)
class Collating:
    """Columns → batch by a method of a data module, which goes to loader processes without its trainer's model.

    Args:
        data: the module.
        method: takes the module and the columns.
    """

    data: Any
    method: Callable[..., Batch]

    def __call__(self, columns: Any) -> Batch:
        """The batch."""
        return self.method(self.data, columns)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy for another process."""
        alone = copy.copy(self.data)
        alone.trainer = None
        return Collating, (alone, self.method)


class PlannedBatches(Sampler[list[int]]):
    """The batches of one rank: every `ranks`-th of the plan, starting where the trainer stands.

    Args:
        plan: from the epoch to its batches over all ranks.
        count: how many batches that are.
        rank: this process.
        ranks: how many processes.
        position: gives (epoch, batches already done by this rank) when the first batch is asked for.
    """

    def __init__(
        self,
        plan: Callable[[int], list[Indices]],
        count: int,
        rank: int = 0,
        ranks: int = 1,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.plan = plan
        self.count = count
        self.rank = rank
        self.ranks = ranks
        self.position = position

    def __len__(self) -> int:
        return self.count // self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self.position()
        for batch in self.plan(epoch)[self.rank :: self.ranks][done:]:
            yield RowNumbers(np.asarray(batch).tolist(), epoch)


class Loader(DataLoader[Any]):
    """A DataLoader that starts late and keeps no state.

    Lightning calls `iter(loader)` before it restores its progress; the plan is read only when the first batch is asked
    for. Position and order are derived from the progress, so there is no state to save.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: only keeps Lightning from warning that the loader can't be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
