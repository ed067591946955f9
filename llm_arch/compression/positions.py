"""Which positions of a layer's inputs belong to which sequence of a batch, told by the shape of the inputs.

Legend: T tokens, B sequences, L longest of them, N positions, G groups, I inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llm_arch import fillers
from llm_arch.types import Batch


class Positions(NamedTuple):
    """The positions of inputs (…, I), one behind another.

    Attributes:
        group_N: the sequence of each, 0 … G-1.
        groups: G; 1 where they are of no sequence, such as what all share.
        real_N: False for padding; None where all are real.
    """

    group_N: Tensor
    groups: int
    real_N: Tensor | None = None


def positions_of(shape: torch.Size, batch: Batch) -> Positions:
    """Where inputs of this shape belong.

    Args:
        shape: (…, I) where what comes before I are the batch's tokens, in its layout or in a grid filled from the left,
            or its sequences.
        batch: the batch.
    """
    lead = shape[:-1]
    count, size, device = lead.numel(), batch.size, batch.starts.device
    if count == len(batch.segments):
        return Positions(batch.segments, size, batch.valid)
    if fillers.is_of(shape, batch.segments):
        tokens = len(batch.segments)
        return Positions(
            fillers.filled(batch.segments, count - tokens), size, torch.arange(count, device=device) < tokens
        )
    if lead[0] != size:
        return without_batch(shape, device)
    group_N = torch.arange(size, device=device).repeat_interleave(count // size)
    real_N = None
    if len(lead) == 2 and lead[1] == batch.longest:
        real_N = (torch.arange(lead[1], device=device) < batch.lengths[:, None]).flatten()
    return Positions(group_N, size, real_N)


def without_batch(shape: torch.Size, device: torch.device) -> Positions:
    """Where inputs belong that are of no batch: (R, L, I) to R sequences, as while texts are written, others to one."""
    lead = shape[:-1]
    groups = lead[0] if len(lead) > 1 else 1
    return Positions(torch.arange(groups, device=device).repeat_interleave(lead.numel() // groups), groups)
