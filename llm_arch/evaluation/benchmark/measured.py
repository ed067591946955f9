"""What was measured of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class AtLength:
    """How fast rows of one length are predicted, from text to prediction.

    Attributes:
        length: tokens of a row that were asked for.
        tokens: tokens of the rows that could be made, by this model's tokenizer, on average.
        p50_ms: median time of one row, in milliseconds.
        p95_ms: time that one row in twenty exceeds.
        rows_per_second: rows of a batch over the median time of that batch.
    """

    length: int
    tokens: float
    p50_ms: float
    p95_ms: float
    rows_per_second: float


@dataclass(frozen=True)
class OnRows:
    """How fast the rows of a file are predicted one by one, each at its own length.

    Attributes:
        rows: how many were timed, spread over the file.
        tokens: tokens of a row, on average.
        mean_ms: mean over the rows of each one's median time, in milliseconds.
        p50_ms: median over all times.
        p95_ms: time that one in twenty exceeds.
    """

    rows: int
    tokens: float
    mean_ms: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Measured:
    """A model's size, speed and quality.

    Attributes:
        name: what it is called in tables.
        task: its head.
        parameters: of backbone and head, tied ones once.
        nonzero_parameters: those that are not 0.
        weights_bytes: bytes of the files with weights.
        directory_bytes: bytes of all files.
        macs_per_token: multiply-accumulates that a prediction of one row takes over its tokens; None where torch can't
            count them.
        macs_length: tokens of that row.
        memory_bytes: the most memory that a fresh process held while it predicted, of its own and of libraries; None
            where it was not measured.
        at_lengths: speed by length.
        on_rows: speed on the rows of a file, or None without one.
        metric: name of the head's metric, with a file of rows.
        value: its value on all rows.
        mode: whether more of it is better (`max`), or less.
    """

    name: str
    task: str
    parameters: int
    nonzero_parameters: int
    weights_bytes: int
    directory_bytes: int
    macs_per_token: float | None
    macs_length: int
    memory_bytes: int | None
    at_lengths: tuple[AtLength, ...]
    on_rows: OnRows | None = None
    metric: str | None = None
    value: float | None = None
    mode: Literal["min", "max"] | None = None

    def faster_than(self, other: Measured) -> float:
        """How many times as fast as another model it predicts a row: on a file's rows, else the mean over lengths."""
        if self.on_rows is not None and other.on_rows is not None:
            return other.on_rows.mean_ms / self.on_rows.mean_ms
        ours = {one.length: one.p50_ms for one in self.at_lengths}
        ratios = [math.log(one.p50_ms / ours[one.length]) for one in other.at_lengths if one.length in ours]
        return math.exp(sum(ratios) / len(ratios)) if ratios else math.nan

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def best(found: Sequence[Measured]) -> list[Measured]:
    """The models that no other beats in both metric and speed, slowest first.

    Args:
        found: models with a metric.
    """
    first = found[0]

    def quality(one: Measured) -> float:
        assert one.value is not None
        return one.value if one.mode == "max" else -one.value

    rest = sorted(found, key=lambda one: (one.faster_than(first), quality(one)), reverse=True)
    front: list[Measured] = []
    for one in rest:
        if not front or quality(one) > quality(front[-1]):
            front.append(one)
    return front[::-1]
