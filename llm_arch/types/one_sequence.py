"""A single sequence as a batch: what a request is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from llm_arch.types.batch import Batch


class OneSequence(Batch):
    """A flat batch of one sequence, whose tensors are made when something asks for them.

    A small model needs few of them, and answers in less time than making all would take.
    """

    @classmethod
    def of(cls, ids: Sequence[int], types: Sequence[int] | None, index: int) -> OneSequence:
        """The batch of one row.

        Args:
            ids: its tokens.
            types: their token types, or None.
            index: its number.
        """
        one = cls.__new__(cls)
        values = {"_ids": ids, "_index": index, "labels": {}, "texts": {}, "rows": 1}
        one.__dict__.update(values, token_type_ids=None if types is None else torch.tensor(types))
        return one

    @property
    def ids(self) -> Sequence[int] | None:
        """Its tokens as they were given; None in a batch that something was replaced in."""
        return self.__dict__.get("_ids")

    @property
    def size(self) -> int:
        """B, which is 1."""
        return 1

    def __getattr__(self, name: str) -> Tensor:
        """A tensor that nothing has asked for yet."""
        make = _MADE.get(name)
        if make is None or "_ids" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        found = self.__dict__[name] = make(self.__dict__["_ids"], self.__dict__["_index"])
        return found

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on another device; itself on the CPU."""
        if torch.device(device).type == "cpu" and self.ids is not None:
            return self
        whole = Batch(**{field.name: getattr(self, field.name) for field in fields(Batch)})
        return whole.to(device, non_blocking)


_MADE: dict[str, Callable[[Sequence[int], int], Tensor]] = {
    "input_ids": lambda ids, index: torch.tensor(ids),
    "position_ids": lambda ids, index: torch.arange(len(ids)),
    "segments": lambda ids, index: torch.zeros(len(ids), dtype=torch.long),
    "starts": lambda ids, index: torch.zeros(1, dtype=torch.long),
    "lengths": lambda ids, index: torch.tensor([len(ids)]),
    "index": lambda ids, index: torch.tensor([index]),
}
