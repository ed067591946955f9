"""What parts of a model hand on: states, losses, predictions, and how tokens become texts.

Legend: T tokens of the batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


class Hidden(NamedTuple):
    """What a backbone returns: the last layer's states (T, D), and all layers' (embeddings first) when asked for."""

    last_TD: Tensor
    layers: tuple[Tensor, ...] | None = None


class Loss(NamedTuple):
    """A loss as a sum and what it counts, so that accumulation, packing and ranks do not change it."""

    sum: Tensor
    denominator: Tensor | float

    @property
    def mean(self) -> Tensor:
        """The sum over the denominator; 0 where nothing counts, such as rows of weight 0 alone."""
        if isinstance(self.denominator, Tensor):
            return self.sum / self.denominator.clamp(min=_TINY)
        return self.sum / max(self.denominator, _TINY)


@dataclass(frozen=True)
class Prediction:
    """What a head says of one example; every task has a subclass with fields of its own.

    Attributes:
        index: row number of the example in its input.
    """

    index: int

    def to(self, device: torch.device | str) -> Prediction:
        """Itself: it holds no tensors, but Lightning moves what it collects, and takes frozen fields apart without."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without the row number."""
        return {k: v for k, v in asdict(self).items() if k != "index"}


@dataclass(frozen=True)
class Detokenizer:
    """How data that is to be written turns tokens into texts.

    Attributes:
        decode: token ids of some texts → the texts, special tokens left out.
        end: the tokens that end a text.
        pad: a token to fill up with.
        language: code of the language of the texts.
    """

    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    end: tuple[int, ...]
    pad: int
    language: str = "en"
