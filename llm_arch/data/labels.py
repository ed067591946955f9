"""What formats with class labels share: cells that are labels, the order of discovered ones, and unknown ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from llm_arch.types import LabelSpace, UserError

_LISTED = 12


def label_fault(label: Any, column: str) -> str | None:
    """What is wrong with a cell that holds one label, as the end of a sentence, or None."""
    if label is None or isinstance(label, dict | list | float):
        return f"{column!r} holds {label!r}, which is no label; fix the row"
    return None if str(label).strip() else f"{column!r} is empty; fix the row"


def in_order(names: Iterable[str]) -> list[str]:
    """Label names sorted: numbers by value, and words behind them."""
    return sorted(names, key=_by_number)


def unknown_label(source: str, line: int, label: str, count: int, known: LabelSpace, where: str) -> UserError:
    """The complaint about a label of a split that the label space lacks.

    Args:
        source: the split's source.
        line: the first line that has the label.
        label: its name.
        count: how many rows have it.
        known: the label space.
        where: where the label space comes from, such as `in the training rows`.
    """
    return UserError(
        f"{source}, line {line}: the label {label!r} ({count} rows) does not occur {where}; "
        f"known labels: {', '.join(known.names[:_LISTED])}{' …' if len(known) > _LISTED else ''}"
    )


def _by_number(name: str) -> tuple[int, float, str]:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    # "nan" and "inf" are numbers to Python, but words to whoever named a label so.
    return (0, value, name) if math.isfinite(value) else (1, 0.0, name)
