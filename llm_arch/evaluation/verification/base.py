"""What a check is, and what it finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llm_arch.evaluation.verification.subject import Subject

Status = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        status: `pass`; `warn`, worth a look; `fail`; or `skip`, since the check has nothing to look at here.
        measured: the number that was compared with the bound, or None where none was.
        bound: what it must be, such as `≤ 1e-05`; empty where there is none.
        reason: what the number is of, where it was found, or why there is none.
        check: the name of the check.
        seconds: how long it took.
    """

    status: Status
    measured: float | None
    bound: str
    reason: str
    check: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    def of(self, check: str, seconds: float) -> Outcome:
        """The same, with the check's name and how long it took."""
        return replace(self, check=check, seconds=seconds)


def at_most(measured: float, bound: float, reason: str) -> Outcome:
    """A number that must not be above the bound; NaN is."""
    return Outcome("pass" if measured <= bound else "fail", measured, f"≤ {bound:g}", reason)


def at_least(measured: float, bound: float, reason: str) -> Outcome:
    """A number that must not be below the bound; NaN is."""
    return Outcome("pass" if measured >= bound else "fail", measured, f"≥ {bound:g}", reason)


def skip(reason: str) -> Outcome:
    """There is nothing to look at."""
    return Outcome("skip", None, "", reason)


class Check(ABC):
    """A promise, and how to look whether it is kept.

    Every subclass in a file of this folder is run; a constructor takes no arguments.

    Attributes:
        promise: the promise in a few words, as the table names it.
    """

    promise: str

    @abstractmethod
    def run(self, subject: Subject) -> Outcome:
        """Look; what it raises counts as a failure."""
