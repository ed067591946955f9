"""Batches filled up to a round number of tokens on a CPU, where matrix products are compiled anew for every shape.

oneDNN, which multiplies in half precision there, writes machine code for each shape that it meets and keeps that of
some hundreds. A batch without padding has a size that hardly ever comes back, and each layer of a pruned model shapes
of its own: the code took up to half of a training step to write. With a few tokens more, which nothing reads, sizes
recur.

Legend: T tokens, F fillers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = 64


def count_of(tokens_T: Tensor) -> int:
    """F, how many a batch gets: none but on a CPU under autocast.

    Args:
        tokens_T: those there are, or whatever there is of each.
    """
    compiled = tokens_T.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return -len(tokens_T) % _STEP if compiled else 0


def filled(values: Tensor, count: int) -> Tensor:
    """(T, …) → (T + F, …): the first token's again and again, so that the range of values stays what it is."""
    return torch.cat([values, values[:1].expand(count, *values.shape[1:])]) if count else values


def is_of(states: Tensor | torch.Size, tokens_T: Tensor) -> bool:
    """Whether states (…, D) are those of a batch's tokens and then of its fillers, one behind another.

    Args:
        states: of any part of a model, or their shape.
        tokens_T: whatever there is of each token.
    """
    lead = (states if isinstance(states, torch.Size) else states.shape)[:-1]
    return lead.numel() == lead[-1] == len(tokens_T) + count_of(tokens_T)
