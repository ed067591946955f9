"""A single sequence as a batch: what a request is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_arch.types.batch import Batch


class OneSequence(Batch):
    """A flat batch of one sequence, whose tensors are made when something asks for them.

    A small model needs few of them, and answers in less time than making all would take.
    """

    _ids: Sequence[int]
    _types: Sequence[int] | None
    _index: int

    def __new__(cls, *values: Any, **named: Any) -> Batch:  # type: ignore[misc]
        """A batch as any other: what `dataclasses.replace` makes may be of more than one sequence."""
        return Batch(*values, **named)

    @classmethod
    def of(cls, ids: Sequence[int], types: Sequence[int] | None, index: int) -> OneSequence:
        """The batch of one row.

        Args:
            ids: its tokens.
            types: their token types, or None.
            index: its number.
        """
        one = object.__new__(cls)
        values: dict[str, Any] = {"_ids": ids, "_types": types, "_index": index, "labels": {}, "texts": {}, "rows": 1}
        one.__dict__.update(values, token_type_ids=None if types is None else torch.tensor(types))
        return one

    @property
    def ids(self) -> Sequence[int]:
        """Its tokens as they were given."""
        return self._ids

    @property
    def size(self) -> int:
        """B, which is 1."""
        return 1

    def __getattr__(self, name: str) -> Tensor:
        """A tensor that nothing has asked for yet."""
        make = _MADE.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        found = self.__dict__[name] = make(self._ids, self._index)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """What to make a copy from, here or in another process."""
        return OneSequence.of, (self._ids, self._types, self._index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on another device; itself on the CPU."""
        return self if torch.device(device).type == "cpu" else super().to(device, non_blocking)

    def _with(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self)._with(move)


_MADE: dict[str, Callable[[Sequence[int], int], Tensor]] = {
    "input_ids": lambda ids, index: torch.tensor(ids),
    "position_ids": lambda ids, index: torch.arange(len(ids)),
    "segments": lambda ids, index: torch.zeros(len(ids), dtype=torch.long),
    "starts": lambda ids, index: torch.zeros(1, dtype=torch.long),
    "lengths": lambda ids, index: torch.tensor([len(ids)]),
    "index": lambda ids, index: torch.tensor([index]),
}
