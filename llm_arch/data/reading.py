"""The rows of a source, checked, tokenized and counted, a chunk at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from llm_arch.data.progress import progress
from llm_arch.data.sources import Row, Source
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.data.format import RowFormat

_CHUNK = 1000
_KEPT_BAD_ROWS = 10_000


def encoded_rows(
    form: RowFormat, source: Source, labelled: bool, facts: dict[str, Any]
) -> Iterator[dict[str, list[Any]]]:
    """Columns to store, chunk by chunk.

    Args:
        form: what a row means.
        source: where the rows are.
        labelled: whether labels are needed.
        facts: filled with counts over all rows.

    Raises:
        UserError: at the first row that can't be used, unless the format skips such rows.
    """
    facts.update(rows=0, tokens=0, truncated=0, unknown=0, words=0, labels={}, bad=[], bad_rows=0)
    unknown_id = form.tokenizer.unk_token_id
    columns_found = _Columns(form, source.name)
    with progress(f"tokenizing {source.name}") as advance:
        rows = iter(form.rows(source, labelled, facts))
        while chunk := list(islice(rows, _CHUNK)):
            good = list(_usable(form, source.name, chunk, labelled, facts, columns_found))
            if not good:
                continue
            columns, counts = form.encode([row.values for row in good], labelled)
            if faults := encoding_faults(columns):
                for i, fault in faults.items():
                    note_bad_row(form, source.name, good[i].line, fault, facts)
                full = [i for i in range(len(good)) if i not in faults]
                good = [good[i] for i in full]
                columns = {name: [values[i] for i in full] for name, values in columns.items()}
            texts = [form.texts(row.values) for row in good]
            kept = [form.kept(row.values, labelled) for row in good]
            columns |= {name: [k[name] for k in kept] for name in form.schema if name not in columns}
            columns["line"] = [row.line for row in good]
            columns["key"] = [_key(form.group(row.values)) for row in good]
            counts.setdefault("words", sum(len(a.split()) + len((b or "").split()) for a, b in texts))
            counts |= {"rows": len(good), "tokens": sum(map(len, columns["input_ids"]))}
            if unknown_id is not None:
                counts["unknown"] = sum(ids.count(unknown_id) for ids in columns["input_ids"])
            for name, count in counts.items():
                facts[name] = facts.get(name, 0) + count
            for i, row in enumerate(good):
                for label in form.labels_of({name: columns[name][i] for name in form.schema}):
                    facts["labels"].setdefault(label, [0, row.line])[0] += 1
            advance(len(good))
            yield columns
    if facts["rows"] == 0:
        columns_found.check()
    facts["notes"] = source.notes


def _usable(
    form: RowFormat, source: str, rows: Iterable[Row], labelled: bool, facts: dict[str, Any], found: _Columns
) -> Iterator[Row]:
    for row in rows:
        needed = [name for name, always in form.columns_of(row.values).items() if labelled or always]
        if row.fault is None:
            found.see(needed, row.values)
        fault = row.fault or missing(needed, row.values) or form.fault(row.values, labelled)
        if fault is None:
            yield row
        else:
            note_bad_row(form, source, row.line, fault, facts)


def note_bad_row(form: RowFormat, source: str, line: int, fault: str, facts: dict[str, Any]) -> None:
    """Count a row that can't be used, or raise UserError where the format stops at such rows."""
    if form.on_bad_row == "error":
        raise UserError(f"{source}, line {line}: {fault} (or leave such rows out with --data.on_bad_row skip)")
    facts["bad_rows"] += 1
    if len(facts["bad"]) < _KEPT_BAD_ROWS:
        facts["bad"].append([line, fault])


def encoding_faults(columns: dict[str, list[Any]]) -> dict[int, str]:
    """What is wrong with encoded rows, by their place, as the end of a sentence; takes the column `fault` out."""
    empty = [i for i, ids in enumerate(columns["input_ids"]) if not ids]  # a mean over no tokens would be NaN
    said = columns.pop("fault", None)
    return {i: (said[i] if said else None) or "gives no tokens with this tokenizer; fix the row" for i in empty}


def missing(needed: Iterable[str], values: Mapping[str, Any]) -> str | None:
    """Which of the columns a row lacks, as the end of a sentence, or None."""
    absent = [name for name in needed if values.get(name) is None]
    return f"has no {absent[0]!r}" if absent else None


class _Columns:
    """Tells a source without a column, whose name is then wrong, from one of which some rows lack it.

    Args:
        form: what a row means.
        source: where the rows are.
    """

    def __init__(self, form: RowFormat, source: str) -> None:
        self._form, self._source = form, source
        self._absent: list[str] | None = None  # what no row so far has had
        self._first: list[str] = []  # the columns of the first row

    def see(self, needed: Iterable[str], values: Mapping[str, Any]) -> None:
        """Look at a row; where no row is to be left out, the first decides."""
        if self._absent is None:
            self._absent, self._first = [name for name in needed if name not in values], list(map(str, values))
            if self._form.on_bad_row == "error":
                self.check()
        elif self._absent:
            self._absent = [name for name in self._absent if name not in values]

    def check(self) -> None:
        """Raise UserError when no row has had some column."""
        if self._absent:
            raise UserError(
                f"{self._source} has no column {self._absent[0]!r}; it has: {', '.join(self._first)}. "
                f"Name yours with {self._form.column_options} and the like"
            )


def _key(group: Any) -> int:
    """Equal for equal groups; 64 bits, so that a column of them stays small."""
    return int.from_bytes(hashlib.sha256(repr(group).encode(errors="surrogatepass")).digest()[:8], "big", signed=True)
