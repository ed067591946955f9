"""What was measured of the ways to run a model, and which of them may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

AGREEMENT, POINTS = 0.98, 1.0
KEPT = "kept"
_WHOLE = 100  # points


@dataclass(frozen=True)
class Way:
    """A way to run a model, and what was measured of it.

    Attributes:
        name: the runtime and the precision.
        bytes: of its weights; None where it can't be had.
        ms: milliseconds that a row takes, from text to prediction.
        agreement: share of the compared rows that are predicted as by the model as it is, in [0, 1].
        value: the head's metric on all rows; None without labels.
        verdict: `kept`, `slower`, or why it is out of the question.
    """

    name: str
    bytes: int | None = None
    ms: float | None = None
    agreement: float | None = None
    value: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Fastest:
    """Which way is the fastest.

    Attributes:
        ways: all of them; the first is the model as it is.
        metric: name of the head's metric; None for rows without labels.
        mode: whether more of it is better (`max`), or less.
        limit: what had to be kept, in words.
        compared: on how many rows ways were compared.
        timed: on how many they were timed.
        threads: of each way.
        cpu: this machine's.
    """

    ways: tuple[Way, ...]
    metric: str | None
    mode: Literal["min", "max"] | None
    limit: str
    compared: int
    timed: int
    threads: int
    cpu: str

    @property
    def kept(self) -> Way:
        """The fastest."""
        return next(way for way in self.ways if way.verdict == KEPT)

    def times(self, way: Way) -> float | None:
        """How many times as fast as the model as it is."""
        first = self.ways[0].ms
        return None if way.ms is None or first is None else first / way.ms


def judged(
    ways: Sequence[Way],
    metric: str | None,
    mode: Literal["min", "max"] | None,
    agreement: float | None,
    points: float | None,
) -> tuple[str, list[Way]]:
    """What had to be kept, in words, and the ways with their verdicts.

    Args:
        ways: all that were measured; the first is the model as it is, and within every limit.
        metric: name of the head's metric; None for rows without labels.
        mode: whether more of it is better, or less.
        agreement: least share of rows predicted as before; None for 0.98 without labels, and for no such limit with.
        points: hundredths that the metric may lose, or percent that it may gain where less is better; None for 1.
    """
    if metric is None or agreement is not None:
        least = AGREEMENT if agreement is None else agreement
        limit = f"at least {least:.1%} of rows predicted as before"
        reasons = ["" if _of(way.agreement) >= least else f"only {_of(way.agreement):.1%} as before" for way in ways]
    else:
        most, first = POINTS if points is None else points, _of(ways[0].value)
        unit = 1.0 if mode == "max" else abs(first)
        change, kind = ("lose", "points") if mode == "max" else ("gain", "%")
        limit = f"{metric} may {change} at most {most:g} {kind}"
        sign = 1 if mode == "max" else -1
        lost = [sign * (first - _of(way.value)) * _WHOLE for way in ways]
        reasons = [
            "" if one <= most * unit + 1e-6 else f"{metric} would {change} {one / (unit or 1.0):.1f} {kind}"
            for one in lost
        ]
        reasons[0] = ""  # also where the metric is no number
    allowed = [way for way, reason in zip(ways, reasons, strict=True) if not reason]
    best = min(allowed, key=lambda way: _of(way.ms))
    return limit, [
        replace(way, verdict=reason or (KEPT if way is best else "slower"))
        for way, reason in zip(ways, reasons, strict=True)
    ]


def _of(value: float | None) -> float:
    assert value is not None
    return value
