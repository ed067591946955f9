"""What a classifying task can answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_arch.types.errors import UserError


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a task, in the order of the logits.

    Args:
        names: the label names; position is the class index.
        counts: how often each label stands in the training split, or None when unknown; used by balanced weights.
        multi: whether an example carries a set of labels instead of exactly one.
        moments: mean and standard deviation of the training targets where they are numbers, which have no names.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    multi: bool = False
    moments: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise UserError(f"label names must be distinct, got {list(self.names)}")
        if self.counts is not None and len(self.counts) != len(self.names):
            raise UserError(f"{len(self.names)} labels but {len(self.counts)} counts")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The class index of a label name; raises UserError listing the known labels."""
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names[:12]) + (" …" if len(self.names) > 12 else "")
            raise UserError(f"unknown label {name!r}; the labels are: {known}") from None

    def places_in(self, other: LabelSpace, whose: str) -> tuple[int, ...]:
        """Where another label space has each of these labels.

        Args:
            other: the same labels in any order.
            whose: what the other one is called in a message.

        Raises:
            UserError: they are not the same, with the first label that differs.
        """
        if self.multi != other.multi:
            ours, theirs = ("sets of labels" if space.multi else "one label each" for space in (self, other))
            raise UserError(
                f"the data has rows with {ours}, and {whose} gives {theirs}; take a teacher of the same task"
            )
        for name in (*self.names, *other.names):
            if name not in other.names or name not in self.names:
                has, lacks = (
                    ("the data has", f"{whose} lacks") if name in self.names else (f"{whose} has", "the data lacks")
                )
                raise UserError(
                    f"{has} the label {name!r}, which {lacks}; a student learns what a teacher says of the same labels"
                )
        return tuple(map(other.names.index, self.names))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "names": list(self.names),
            "counts": list(self.counts) if self.counts else None,
            "multi": self.multi,
            **({"moments": list(self.moments)} if self.moments else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSpace:
        """The inverse of `to_dict`."""
        counts, moments = values.get("counts"), values.get("moments")
        return cls(
            tuple(values["names"]),
            tuple(counts) if counts else None,
            bool(values.get("multi", False)),
            (float(moments[0]), float(moments[1])) if moments else None,
        )
