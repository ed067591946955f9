"""Small sets of this project's own, on which configs run as they are: one NAME.jsonl each, with a `split` a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_arch.types import UserError

SAMPLE = "sample:"
_SPLITS = ("train", "validation", "test")
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The sets there are, each as NAME of `sample:NAME`."""
    return sorted(path.stem for path in _FOLDER.glob("*.jsonl"))


def sample_file(source: str) -> Path:
    """The file of a set.

    Args:
        source: `sample:NAME` or `sample:NAME:SPLIT`.

    Raises:
        UserError: when there is none of that name.
    """
    name = source.removeprefix(SAMPLE).partition(":")[0]
    if name not in names():
        raise UserError(f"{source}: there is no sample of this name; there are: {', '.join(names())}")
    return _FOLDER / f"{name}.jsonl"


def sample_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of one split, each with its line in the file.

    Args:
        source: `sample:NAME:SPLIT`, or `sample:NAME` for the training rows.

    Raises:
        UserError: when there is no such set or split.
    """
    split = source.removeprefix(SAMPLE).partition(":")[2] or "train"
    if split not in _SPLITS:
        raise UserError(f"{source}: a sample has the splits {', '.join(_SPLITS)}")
    lines = sample_file(source).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        values = json.loads(line)
        if values.pop("split") == split:
            yield number, values
