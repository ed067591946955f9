"""The cells of a multiple-choice row: choices in all their forms, and which of them is the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llm_arch.types import UserError

Choice = tuple[str | None, str]  # its label, if it has one, and its text


def choices_of(cell: Any, column: str) -> list[Choice]:
    """The choices in a cell.

    Args:
        cell: a list of texts, a list of {"label", "text"}, or {"label": [...], "text": [...]}; labels may be left out.
        column: where it stands, for messages.

    Raises:
        UserError: when these are no two or more different choices, as the end of a sentence about the row.
    """
    if isinstance(cell, Mapping):
        texts, labels = cell.get("text"), cell.get("label")
    elif isinstance(cell, list) and all(isinstance(one, Mapping) for one in cell):
        texts, labels = [one.get("text") for one in cell], [one.get("label") for one in cell]
        labels = None if all(label is None for label in labels) else labels
    else:
        texts, labels = cell, None
    if not isinstance(texts, list):
        raise UserError(
            f"{column!r} holds {type(cell).__name__} instead of a list of choices; where each has a column, name them "
            "with --data.choice_columns"
        )
    if len(texts) < 2:
        raise UserError(
            f"has {len(texts) or 'no'} choice{'s' * (not texts)} ({column!r}); a question needs two or more"
        )
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{column!r} has the choice {text!r}, which is no text; fix the row")
    texts = [text.strip() for text in texts]
    _check_different(texts, "choice", column)
    if labels is None:
        return [(None, text) for text in texts]
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise UserError(f"{column!r} has {len(texts)} choices, but labels {labels!r}; give each one")
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
            raise UserError(f"{column!r} has a choice with the label {label!r}, which is none; fix the row")
    labels = [str(label).strip() for label in labels]
    _check_different(labels, "label", column)
    return list(zip(labels, texts, strict=True))


def place_of(answer: Any, choices: Sequence[Choice], column: str) -> int:
    """The number of the choice that is the answer, from 0.

    Args:
        answer: the label of a choice, else its text, else its number; a number that is not written as text is never a
            text.
        choices: all of them.
        column: where the answer stands, for messages.

    Raises:
        UserError: when it is none of them, as the end of a sentence about the row.
    """
    if isinstance(answer, str | int):
        said = str(answer).strip()
        labels, texts = zip(*choices, strict=True)
        if said in labels:
            return labels.index(said)
        if said in texts and type(answer) is not int:
            return texts.index(said)
        if not isinstance(answer, bool) and said.removeprefix("-").isdecimal():
            if 0 <= int(said) < len(choices):
                return int(said)
            raise UserError(f"{column!r} is {said}, but the choices are numbered from 0 to {len(choices) - 1}")
    known = ", ".join(repr(text) if label is None else f"{label} ({text!r})" for label, text in choices[:6])
    more = " …" if len(choices) > 6 else ""
    raise UserError(f"{column!r} holds {answer!r}, which is none of the choices: {known}{more}")


def _check_different(names: Sequence[str], what: str, column: str) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{column!r} has the {what} {name!r} {'twice' if count == 2 else f'{count} times'}; fix the row"
        )
