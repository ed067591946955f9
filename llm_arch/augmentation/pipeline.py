"""From rows to more rows: which new ones are wanted, made, dropped and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from llm_arch.augmentation.base import Method, Request, checked_least
from llm_arch.augmentation.filters import Filter
from llm_arch.augmentation.rows import Columns, TextRow, Values, read_row
from llm_arch.augmentation.similarity import TextIndex
from llm_arch.data.files import Row
from llm_arch.data.progress import progress
from llm_arch.data.sources import Source
from llm_arch.seeding import mix
from llm_arch.types import UserError

PROVENANCE = "augmentation"
_TRIES = 10  # new rows that are tried for each one that a label lacks


@dataclass
class Augmented:
    """What came of it.

    Attributes:
        original: the rows that were read, as they were.
        new: the new rows, in the order in which they were asked for; `augmentation` of each says where it came from.
        made: how many rows the method made, dropped ones included.
        unchanged: how often it could make nothing of a row.
        dropped: how many new rows were dropped, by why.
        lacking: how many rows a label still lacks, of labels that could not be filled.
    """

    original: list[Values] = field(default_factory=list)
    new: list[Values] = field(default_factory=list)
    made: int = 0
    unchanged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lacking: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> list[Values]:
        """The original rows, then the new ones."""
        return self.original + self.new


class Numbered(NamedTuple):
    """A row that was read, and its line."""

    line: int
    row: TextRow


class _Wanted(NamedTuple):
    """One new row: which row it is to be made of, and the how manieth of that row it is."""

    place: int
    copy: int


def augment(
    rows: str | Path | Iterable[Mapping[str, Any]],
    method: Method,
    *,
    copies: int = 1,
    per_label: int | None = None,
    seed: int = 0,
    filters: Sequence[Filter] = (),
    near_duplicates: float | None = None,
    columns: Columns | None = None,
    drop: Sequence[str] = (),
    batch_size: int = 64,
) -> Augmented:
    """Make new rows of labelled ones.

    A new row has all cells of the row it was made of, and in `augmentation` how: {"method", "source_line", "copy",
    "seed"}. It depends on the seed, the number of its row and of the copy alone. One whose text equals that of another
    row, original or new, whatever its case and punctuation, is dropped. All rows are held in memory.

    Args:
        rows: a source as data modules take it (a .csv, .tsv, .jsonl or .parquet file, `hub:NAME:SPLIT`, …), or rows.
        method: how new rows are made.
        copies: how many of each row.
        per_label: instead of `copies`, how many rows every label shall have; labels with more keep theirs. Ten new
            rows are tried for each that is lacking.
        seed: another seed gives other rows.
        filters: which new rows to drop.
        near_duplicates: drop also those whose pairs of consecutive words overlap with another row's to this share
            (Jaccard), in (0, 1].
        columns: how the columns of the rows are called.
        drop: columns to leave out of all rows.
        batch_size: how many new rows are made at a time; changes nothing but speed.

    Raises:
        UserError: naming the line of a row that can't be used.
    """
    checked_least(copies=copies, per_label=per_label, batch_size=batch_size)
    if copies > 1 and not method.varies:
        raise UserError(
            f"the method {method.name!r} makes the same of a row each time; ask for 1 copy, or let it sample"
        )
    columns = columns or Columns()
    read = read_rows(rows, columns, method, drop=drop)
    seen = TextIndex((one.row.texts for one in read), near_duplicates)
    result = Augmented([dict(one.row.values) for one in read])
    needs = _needs(read, per_label, _place(rows)) if per_label else None
    total = sum(needs.values()) if needs is not None else copies * len(read)
    wanted = _for_labels(read, needs, method.varies) if needs is not None else _for_all(len(read), copies)
    with progress("augmenting", total) as advance:
        while chunk := list(islice(wanted, batch_size)):
            requests = [Request(read[place].row, mix(seed, place, copy)) for place, copy in chunk]
            cells = method(requests)
            made = [None if new is None else read_row(new, columns) for new in cells]
            reasons = _reasons(filters, made)
            for (place, copy), row, reason in zip(chunk, made, reasons, strict=True):
                label = read[place].row.label
                if needs is not None and label is not None and not needs[label]:
                    continue  # filled by others of this batch
                advance(int(needs is None))
                if row is None:
                    result.unchanged += 1
                    continue
                result.made += 1
                reason = reason or seen.holds(row.texts)
                if reason:
                    result.dropped[reason] += 1
                    continue
                seen.add(row.texts)
                origin = {"method": method.name, "source_line": read[place].line, "copy": copy, "seed": seed}
                result.new.append({**row.values, PROVENANCE: origin})
                if needs is not None and label is not None:
                    needs[label] -= 1
                    advance(1)
    result.lacking = {label: count for label, count in (needs or {}).items() if count}
    return result


def read_rows(
    rows: str | Path | Iterable[Mapping[str, Any]],
    columns: Columns,
    method: Method | None = None,
    *,
    drop: Sequence[str] = (),
) -> list[Numbered]:
    """The rows of a source, checked.

    Args:
        rows: see `augment`.
        columns: how its columns are called.
        method: a method that must be able to use them; None where their texts alone are wanted.
        drop: columns to leave out.

    Raises:
        UserError: at the first row that can't be used, naming file and line.
    """
    name = _place(rows)
    if isinstance(rows, str | Path):
        found = iter(Source(str(rows), columns=columns).rows())
    else:
        found = (Row(number, dict(values)) for number, values in enumerate(rows, start=1))
    read: list[Numbered] = []
    for line, values, fault, _ in found:
        if fault:
            raise UserError(f"{name} {line}: {fault}")
        values = {column: value for column, value in values.items() if column not in drop}
        try:
            row = read_row(values, columns)
        except UserError as error:
            raise UserError(f"{name} {line}: {error}") from error
        if method is not None and (fault := method.fault(row)):
            raise UserError(f"{name} {line}: {fault}")
        read.append(Numbered(line, row))
    if not read:
        raise UserError(f"{rows if isinstance(rows, str | Path) else 'the input'} has no rows; give some")
    return read


def _reasons(filters: Sequence[Filter], rows: Sequence[TextRow | None]) -> list[str | None]:
    """Why each row is dropped; no filter looks at what an earlier one dropped."""
    reasons: list[str | None] = [None] * len(rows)
    for judge in filters:
        left = [(i, row) for i, row in enumerate(rows) if row is not None and reasons[i] is None]
        for (i, _), reason in zip(left, judge([row for _, row in left]) if left else [], strict=True):
            reasons[i] = reason
    return reasons


def _for_all(rows: int, copies: int) -> Iterator[_Wanted]:
    return (_Wanted(place, copy) for place in range(rows) for copy in range(copies))


def _place(rows: str | Path | Iterable[Mapping[str, Any]]) -> str:
    """What comes before the number of a row in a complaint about it."""
    return f"{rows}, line" if isinstance(rows, str | Path) else "row"


def _needs(read: Sequence[Numbered], per_label: int, place: str) -> dict[str, int]:
    """How many rows each label lacks."""
    counts: Counter[str] = Counter()
    for line, row in read:
        if row.label is None:
            raise UserError(f"{place} {line}: has no label to fill up; give one, or ask for copies instead")
        counts[row.label] += 1
    return {label: max(0, per_label - count) for label, count in counts.items()}


def _for_labels(read: Sequence[Numbered], needs: Mapping[str, int], again: bool) -> Iterator[_Wanted]:
    """A copy of every row whose label lacks rows, then `again` another, until none does or too many were tried."""
    tries = {label: _TRIES * count for label, count in needs.items()}
    copy = 0
    while (again or not copy) and any(needs[label] and tries[label] for label in needs):
        for place, (_, row) in enumerate(read):
            label = row.label
            if label is not None and needs[label] and tries[label]:
                tries[label] -= 1
                yield _Wanted(place, copy)
        copy += 1
