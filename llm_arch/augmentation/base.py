"""The base of all methods: rows in, new rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from llm_arch.augmentation.rows import TextRow, Values
from llm_arch.types import UserError


class Request(NamedTuple):
    """One new row that is wanted.

    Attributes:
        row: the row to make it of.
        key: what its randomness may depend on: a number that tells (seed, row number, copy) apart from all others.
    """

    row: TextRow
    key: int


class Method(ABC):
    """A way of making new rows.

    What it makes of a request depends on that alone, not on the others it comes with: the same in any batch.

    Attributes:
        name: as `--method` and the provenance of new rows call it.
        keeps_marks: whether what is labelled within a text is found again in the new one.
        varies: whether another key gives another row.
    """

    name: ClassVar[str]
    keeps_marks: ClassVar[bool] = True
    varies: bool = True

    @abstractmethod
    def __call__(self, requests: Sequence[Request]) -> list[Values | None]:
        """The cells of each new row, in order; None where nothing can be made of a row.

        Args:
            requests: what is wanted.
        """

    def fault(self, row: TextRow) -> str | None:
        """Why the method can't be used on such a row, as the end of a sentence, or None."""
        if row.marked and not self.keeps_marks:
            return (
                f"has {row.marked} labelled within the text, which can't be found again in what the method "
                f"{self.name!r} writes; take the method 'words' or 'masked', or leave the column out with --drop"
            )
        return None


def checked_share(share: float) -> float:
    """A share of words, in (0, 1]."""
    if not 0 < share <= 1:
        raise UserError(f"share must be in (0, 1], got {share}")
    return share


def checked_least(**values: Any) -> None:
    """Raise UserError for what must be at least 1, by name."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def how_many(share: float, words: int) -> int:
    """How many of so many words a share is: at least one."""
    return max(1, round(share * words))
