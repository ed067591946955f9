"""What formats share about single cells of a row: texts and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_LARGEST = 3.4e38  # of a 32-bit float; comparing with it is false for NaN


def text_fault(values: Mapping[str, Any], columns: Iterable[str | None]) -> str | None:
    """What is wrong with the cells that must hold a text, as the end of a sentence, or None.

    Args:
        values: the row.
        columns: their columns; None stands for a column that the format does without.
    """
    for column in columns:
        if column is None:
            continue
        if not isinstance(values[column], str):
            return f"{column!r} holds {type(values[column]).__name__} instead of text; fix the row"
        if not values[column].strip():
            return f"{column!r} is empty; fix the row"
    return None


def number_fault(values: Mapping[str, Any], column: str) -> str | None:
    """What is wrong with the cell that must hold a number, as the end of a sentence, or None."""
    value = values[column]
    if isinstance(value, str) and not value.strip():
        return f"{column!r} is empty; fix the row"
    try:
        number = number_of(value)
    except (ValueError, OverflowError):
        return f"{column!r} holds {value!r}, which is no number; fix the row"
    return None if abs(number) < _LARGEST else f"{column!r} holds {value!r}, which is no finite number; fix the row"


def number_of(value: Any) -> float:
    """The number that a cell holds, as such or as text; raises ValueError or OverflowError when it holds none."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or "_" in str(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
