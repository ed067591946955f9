"""Rows of a file for the verbs that take a trained model."""

from __future__ import annotations

from collections.abc import Iterator

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
