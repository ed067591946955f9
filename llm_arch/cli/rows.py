"""Rows of a file for the verbs that take a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_arch.data.sources import Source
from llm_arch.types import UserError


def rows_of(name: str, language: str = "en") -> Iterator[dict[str, Any]]:
    """The rows of a source; stops at the first that can't be read, naming its line."""
    empty = True
    for row in Source(name, language).rows():
        empty = False
        if row.fault:
            raise UserError(f"{name}, line {row.line}: {row.fault}")
        yield row.values
    if empty:
        raise UserError(f"{name} has no rows; add some, or name another file")
