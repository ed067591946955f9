"""Splits of a data set, and cutting validation or test rows off the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import concatenate_datasets
from numpy.typing import NDArray

from llm_arch.data.batching import Indices
from llm_arch.data.store import key_of
from llm_arch.types import UserError


@dataclass(frozen=True)
class Split:
    """One split: its rows, which of the stored rows they are, their lengths, and facts about the source.

    Attributes:
        name: train, validation, test or predict.
        source: what the user named.
        rows: memory-mapped columns.
        chosen: (N,) the stored rows that belong here, or None for all.
        lengths: (N,) tokens of each row, over all its windows where it has several.
        facts: counts over the whole source (rows, tokens, truncated, unknown, words, labels, bad rows, notes, and what
            the format counts beside).
    """

    name: str
    source: str
    rows: Any
    chosen: Indices | None
    lengths: Indices
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.lengths)

    def column(self, name: str) -> list[Any]:
        """One column of the split, in order, as Python values: for small splits."""
        whole = self.rows.data.column(name)
        return (whole if self.chosen is None else whole.take(self.chosen)).to_pylist()


def lengths_of(rows: Any) -> Indices:
    """(N,) tokens of each stored row."""
    return pyarrow.compute.list_value_length(rows.data.column("input_ids")).to_numpy().astype(np.int64)


def with_more(split: Split, name: str, rows: Any, facts: dict[str, Any], others: Sequence[Split]) -> Split:
    """A split with the rows of another source behind its own, but for those that belong together with rows of others.

    Args:
        split: the split.
        name: of the other source.
        rows: its memory-mapped columns.
        facts: about it.
        others: splits whose texts must not be learnt.

    Raises:
        UserError: nothing is left of them.
    """
    known = [np.asarray(other.rows.data.column("key").to_numpy()) for other in others]
    known = [keys if other.chosen is None else keys[other.chosen] for keys, other in zip(known, others, strict=True)]
    fresh = np.flatnonzero(
        ~np.isin(rows.data.column("key").to_numpy(), np.concatenate([*known, np.zeros(0, np.int64)]))
    )
    if not len(fresh):
        raise UserError(f"{name} has no row that is not among the validation or test rows; name another file")
    notes = [*split.facts["notes"], f"{len(fresh):,} rows of {name} are trained on too"]
    if lost := len(rows) - len(fresh):
        notes.append(f"{lost:,} rows of {name} were left out, since they stand among the validation or test rows")
    own = np.arange(len(split.rows)) if split.chosen is None else split.chosen
    counted = {key: value + facts[key] for key, value in split.facts.items() if isinstance(value, int) and key in facts}
    both = [split.facts["fingerprint"], facts["fingerprint"], len(fresh)]
    told = {**split.facts, **counted, "notes": notes, "fingerprint": key_of({"sources": both})}
    return Split(
        split.name,
        split.source,
        concatenate_datasets([split.rows, rows]),
        np.concatenate([own, len(split.rows) + fresh]),
        np.concatenate([split.lengths, lengths_of(rows)[fresh]]),
        told,
    )


def cut_off(train: Split, wanted: dict[str, float], seed: int) -> dict[str, Split]:
    """Cut shares off the training rows; rows of equal text stay on one side."""
    parts = divided(train.rows.data.column("key").to_numpy(), wanted, seed, train.source)
    return {name: _part(train, name, chosen) for name, chosen in parts.items()}


def divided(keys: NDArray[Any], wanted: dict[str, float], seed: int, source: str) -> dict[str, Indices]:
    """The numbers of the rows of each wanted split, and of those that are left to train on.

    Args:
        keys: (N,) of each row; rows of equal keys stay on one side.
        wanted: the share of each split that is to be cut off.
        seed: which rows are cut off.
        source: what the rows are called in a message.
    """
    groups, group_of_row = np.unique(keys, return_inverse=True)
    if len(groups) <= len(wanted):
        raise UserError(
            f"{source} has {len(groups)} distinct texts, too few to cut off {' and '.join(wanted)} rows; "
            f"name files for them, or set data.validation_fraction to 0"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes = np.bincount(group_of_row, minlength=len(groups))[order]
    ends = np.cumsum(sizes)
    rank_of_group = np.empty(len(groups), dtype=np.int64)
    rank_of_group[order] = np.arange(len(groups))
    place = rank_of_group[group_of_row]
    parts: dict[str, Indices] = {}
    start = 0
    for position, (name, share) in enumerate(wanted.items()):
        base = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, base + share * len(keys))) + 1
        stop = min(max(stop, start + 1), len(groups) - (len(wanted) - position))
        parts[name] = np.flatnonzero((place >= start) & (place < stop))
        start = stop
    return parts | {"train": np.flatnonzero(place >= start)}


def _part(split: Split, name: str, chosen: Indices) -> Split:
    return Split(name, split.source, split.rows, chosen, split.lengths[chosen], split.facts)
