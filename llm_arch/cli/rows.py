"""Rows of a file for the verbs that take a trained model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from llm_arch.data.sources import Row, Source
from llm_arch.types import UserError


def rows_of(source: Source) -> Iterator[Row]:
    """The rows of a source; stops at the first that can't be read, naming its line."""
    empty = True
    for row in source.rows():
        empty = False
        if row.fault:
            raise UserError(f"{source.name}, line {row.line}: {row.fault}")
        yield row
    if empty:
        raise UserError(f"{source.name} has no rows; add some, or name another file")


def rows_of_texts(texts: Sequence[str], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of texts that were given on the command line.

    Args:
        texts: of `--text`.
        columns: those that the model needs.

    Raises:
        UserError: the model needs more than a text, or a text is empty.
    """
    if len(columns) > 1:
        raise UserError(f"this model takes {' and '.join(columns)}; give them as columns of a file with --input")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise UserError(f"--text: text {number} is empty; leave it out")
    return (Row(i, {columns[0]: text}) for i, text in enumerate(texts, start=1))


def with_line(message: str, name: str | None, rows: Mapping[int, Row]) -> str:
    """Name the line of the file instead of the number of the row.

    Args:
        message: what is wrong, which may begin with the number of a row.
        name: the file; None for texts of the command line.
        rows: by their place, from 0.
    """
    found = re.match(r"row (\d+):? (.*)", message)
    if not found or int(found[1]) - 1 not in rows:
        return message
    return f"{name or '--text'}, line {rows[int(found[1]) - 1].line}: {found[2]}"
