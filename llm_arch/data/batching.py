"""Which rows make up which batch: a pure function of (seed, epoch), the same on any number of devices.

A unit is what must stay together in one batch: a row, which may be the windows of one document. The length of such a
row is that of all its windows together. In the padded layout it then counts as one sequence of that length, so that
budgets and shares of padding are rough where rows have several windows: no batch grows by more than a window a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm_arch.seeding import mix
from llm_arch.types import UserError

Indices = NDArray[np.int64]

# Beyond this many epochs the orders repeat: every epoch must be planned before the first (they must be equally long).
PLANNED_EPOCHS = 100
# Grouping by length sorts within this many batches, so that batches stay random beyond their lengths.
GROUP_WINDOW = 50


@dataclass(frozen=True)
class Cut:
    """How a sequence of units is cut into batches: by count, by token budget, or both.

    Args:
        lengths: (N,) tokens of each unit.
        batch_size: units a batch at most, or None.
        max_tokens: tokens a batch at most, or None; a longer unit has a batch of its own.
        padded: count the budget as units × longest, as the padded layout will fill it.
    """

    lengths: Indices
    batch_size: int | None
    max_tokens: int | None
    padded: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is None and self.max_tokens is None:
            raise UserError("give data.batch_size (rows a batch) or data.max_tokens (tokens a batch)")
        for name, value in (("batch_size", self.batch_size), ("max_tokens", self.max_tokens)):
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}")

    def __call__(self, order: Indices) -> list[Indices]:
        """Cut units in this order into batches."""
        if self.max_tokens is None:
            assert self.batch_size is not None
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        lengths = self.lengths[order]
        ends = np.cumsum(lengths)
        batches: list[Indices] = []
        start = 0
        while start < len(order):
            base = ends[start - 1] if start else 0
            # In the padded layout a batch holds at least as many cells as tokens: look no further than that.
            stop = max(start + 1, int(np.searchsorted(ends, base + self.max_tokens, side="right")))
            if self.batch_size is not None:
                stop = min(stop, start + self.batch_size)
            if self.padded:
                cells = np.maximum.accumulate(lengths[start:stop]) * np.arange(1, stop - start + 1)
                stop = start + max(1, int(np.searchsorted(cells, self.max_tokens, side="right")))
            batches.append(order[start:stop])
            start = stop
        return batches


def shuffled(lengths: Indices, seed: int, epoch: int, group: int | None = None) -> Indices:
    """The order of the units in an epoch.

    Args:
        lengths: (N,) tokens of each unit.
        seed: seed of the run.
        epoch: number of the epoch.
        group: units a window within which they are sorted by length, or None for plain random order.
    """
    random = np.random.default_rng(mix(seed, epoch % PLANNED_EPOCHS))
    order = random.permutation(len(lengths))
    if group is None:
        return order
    windows = [order[i : i + group] for i in range(0, len(order), group)]
    return np.concatenate([w[np.argsort(-lengths[w], kind="stable")] for w in windows])


def split_to(batches: list[Indices], count: int, lengths: Indices) -> list[Indices]:
    """Split the largest batches, or join the smallest, until there are `count`: nothing dropped, nothing doubled."""
    batches = list(batches)
    units = sum(len(b) for b in batches)
    if count > units:
        raise UserError(f"{units} rows can't be spread over {count} micro-batches (ranks × accumulation): use fewer")
    tokens = [int(lengths[b].sum()) for b in batches]
    while len(batches) < count:
        largest = int(np.argmax([size if len(b) > 1 else -1 for b, size in zip(batches, tokens, strict=True)]))
        whole = batches[largest]
        halves = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        batches[largest : largest + 1] = halves
        tokens[largest : largest + 1] = [int(lengths[b].sum()) for b in halves]
    while len(batches) > count:
        smallest, next_smallest = np.argsort(tokens, kind="stable")[:2]
        batches[next_smallest] = np.concatenate([batches[next_smallest], batches[smallest]])
        tokens[next_smallest] += tokens[smallest]
        del batches[smallest], tokens[smallest]
    return batches


def micro_batch_count(batches: int, units: int, multiple: int) -> int:
    """The smallest multiple that is at least `batches`; the largest that `units` can fill where they are too few.

    The second happens when nearly every batch is a single unit: a few batches then exceed their limits by one unit,
    since nothing may be dropped or repeated.
    """
    count = round_up(batches, multiple)
    return count if count <= units else max(units // multiple, 1) * multiple


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple that is at least `count`."""
    return -(-count // multiple) * multiple


class Plan(Protocol):
    """The batches of every epoch, all epochs equally long."""

    @property
    def lengths(self) -> Indices:
        """(N,) tokens of each unit."""
        ...

    def micro_batches(self) -> int:
        """Micro-batches an epoch, over all ranks."""
        ...

    def epoch(self, epoch: int, count: int) -> list[Indices]:
        """The batches of one epoch, exactly `count` of them."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """The batches of every epoch, all epochs equally long.

    Args:
        cut: how units become batches.
        seed: seed of the run.
        epochs: epochs that will be run; at most `PLANNED_EPOCHS` differ.
        multiple: ranks × accumulation, of which the number of micro-batches is a multiple.
        group: group by length.
    """

    cut: Cut
    seed: int
    epochs: int
    multiple: int
    group: bool = False

    @property
    def lengths(self) -> Indices:
        """(N,) tokens of each unit."""
        return self.cut.lengths

    def _batches(self, epoch: int) -> list[Indices]:
        group = None
        if self.group:
            mean = max(1.0, float(self.cut.lengths.mean()))
            size = self.cut.batch_size or max(1, int((self.cut.max_tokens or 0) / mean))
            group = size * GROUP_WINDOW
        batches = self.cut(shuffled(self.cut.lengths, self.seed, epoch, group))
        if self.group:
            order = np.random.default_rng(mix(self.seed, epoch % PLANNED_EPOCHS, 1)).permutation(len(batches))
            batches = [batches[i] for i in order]
        return batches

    def micro_batches(self) -> int:
        """Micro-batches an epoch, over all ranks."""
        # Cut by count alone, every epoch has equally many; by tokens, the longest decides.
        planned = 1 if self.cut.max_tokens is None else max(1, min(self.epochs, PLANNED_EPOCHS))
        most = max(len(self._batches(e)) for e in range(planned))
        return micro_batch_count(most, len(self.cut.lengths), self.multiple)

    def epoch(self, epoch: int, count: int) -> list[Indices]:
        """The batches of one epoch, exactly `count` of them."""
        return split_to(self._batches(epoch), count, self.cut.lengths)


def evaluation_plan(cut: Cut, ranks: int) -> list[Indices]:
    """Batches of equal lengths for evaluation, a multiple of the ranks so that none is left without one."""
    order = np.argsort(-cut.lengths, kind="stable")
    batches = cut(order)
    if len(cut.lengths) < ranks:
        raise UserError(f"{len(cut.lengths)} rows can't be spread over {ranks} ranks: use fewer ranks or more rows")
    return split_to(batches, micro_batch_count(len(batches), len(cut.lengths), ranks), cut.lengths)


def longest_first(batches: list[Indices], lengths: Indices) -> list[Indices]:
    """The same batches, the units of each by their length."""
    return [batch[np.argsort(-lengths[batch], kind="stable")] for batch in batches]


def padding_share(batches: list[Indices], lengths: Indices) -> float:
    """Share of cells that would hold no token if each batch were padded to its longest."""
    cells = sum(len(b) * int(lengths[b].max()) for b in batches)
    return 1 - sum(int(lengths[b].sum()) for b in batches) / max(1, cells)
