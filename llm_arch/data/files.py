"""Files of rows: comma- and tab-separated, JSON lines and parquet. One row at a time."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_arch.types import UserError

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_UTF8 = "is not valid UTF-8; save the file as UTF-8"
_OPEN_QUOTE = "opens a quote that is never closed; close it"
_QUOTED = re.compile(r'"(?:[^"]++|"")*+"')
_PLAIN = re.compile(r"[^,\r\n]*+")


class Row(NamedTuple):
    """One row of a source.

    Attributes:
        line: its line in the file, or its number.
        values: its cells by column.
        fault: what is wrong with it, if anything.
        lines: the line of each token, where a row is spread over several lines.
    """

    line: int
    values: dict[str, Any]
    fault: str | None = None
    lines: tuple[int, ...] = ()


Reader = Callable[[Path], Iterator[Row]]


def undecodable(values: list[str]) -> bool:
    """Whether bytes that are not UTF-8 were read as lone surrogates into any of these."""
    return any("\udc80" <= c <= "\udcff" for value in values for c in value if c >= "\ud800")


def read_delimited(path: Path) -> Iterator[Row]:
    """Comma-separated with quotes (RFC 4180), or tab-separated without (IANA), where a quote is just a character.

    A quote that is never closed spoils the lines up to where it stands; those behind it are rows again.
    """
    csv.field_size_limit(2**31 - 1)
    tabs = path.suffix == ".tsv"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(
            lines,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            strict=not tabs,
        )
        header: list[str] | None = None
        while True:
            lines.row.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                opened = lines.give_back()
                line = lines.first if opened is None else opened
                what = f"is not valid csv ({error})" if opened is None else _OPEN_QUOTE
                if header is None:
                    raise UserError(f"{path}, line {line}: the header {what}") from error
                yield Row(line, {}, what)
                continue
            if cells is None:
                return
            if cells and header is None:
                header = cells
                if undecodable(header):
                    raise UserError(f"{path}, line {lines.first}: the header {_NOT_UTF8}")
                if len(set(header)) != len(header):
                    raise UserError(f"{path}, line {lines.first}: the header names a column twice: {', '.join(header)}")
            elif cells and header is not None:
                values = dict(zip(header, cells, strict=False))
                fault = None
                if len(cells) != len(header):
                    fault = f"has {len(cells)} fields where the header has {len(header)}"
                elif undecodable(cells):
                    fault = _NOT_UTF8
                yield Row(lines.first, values, fault)


class _Lines:
    """The lines of a csv file, of which those behind a quote that is never closed can be read again.

    No line is read more than twice, however many quotes are open: lines that such a quote swallowed have only pairs of
    quotes, and end outside of quotes when they are read again.

    Args:
        lines: the lines, with their ends.

    Attributes:
        number: of the line read last.
        row: the lines of the row that is being read.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.number = 0
        self.row: list[str] = []
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self._ended = False

    @property
    def first(self) -> int:
        """The number of the row's first line."""
        return self.number - len(self.row) + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._ended = True
        line = self._again.popleft() if self._again else next(self._lines)
        self._ended = False
        self.number += 1
        self.row.append(line)
        return line

    def give_back(self) -> int | None:
        """Let the lines behind a quote that is never closed be read again.

        Returns:
            The number of the line in which it stands, or None when that is not why the row is no csv.
        """
        place = _failing_cell("".join(self.row))
        kept = 0
        while place >= 0:
            place -= len(self.row[kept])
            kept += 1
        behind = self.row[kept:]
        if not self._ended and not (behind and _opens_a_cell(behind[-1])):
            return None
        self._again.extendleft(reversed(behind))
        self.number -= len(behind)
        return self.number


def _failing_cell(row: str) -> int:
    """Where the cell begins that makes a row no csv: it has a quote, and behind it no other, or something stray."""
    place = 0
    while place < len(row):
        cell = (_QUOTED if row[place] == '"' else _PLAIN).match(row, place)
        if cell is None or row[cell.end() : cell.end() + 1] not in ("", ",", "\r", "\n"):
            return place
        place = cell.end() + 1
    return len(row) - 1


def _opens_a_cell(line: str) -> bool:
    """Whether the quote that ends a cell of earlier lines and has text behind it was meant to begin one.

    It stands at the beginning of the line or behind a comma, and not behind a text.
    """
    end = _QUOTED.match('"' + line)
    return end is not None and line[: end.end() - 1].rstrip('"')[-1:] in ("", ",")


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                values = json.loads(raw.rstrip().decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield Row(line, {}, _NOT_UTF8)
            except json.JSONDecodeError as error:
                yield Row(line, {}, f"is not valid JSON ({error.msg} at column {error.colno})")
            except RecursionError:
                yield Row(line, {}, "is nested too deeply")
            except ValueError:  # thousands of digits
                yield Row(line, {}, "holds a number that is too long")
            else:
                fault = None
                if not isinstance(values, dict):
                    fault = "is not a JSON object; write one object a line"
                elif _SURROGATE.search(raw) and not _encodable(values):
                    fault = "holds half a character (a lone surrogate such as \\ud83d); fix the row"
                yield Row(line, values if fault is None else {}, fault)


def _encodable(values: dict[str, Any]) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of all row groups."""
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from error
    line = 0
    for batch in file.iter_batches(1000):
        for values in batch.to_pylist():
            line += 1
            yield Row(line, values)


READERS: dict[str, Reader] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
