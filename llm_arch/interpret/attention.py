"""How each head of a transformer attends, sequence by sequence.

Legend: B sequences, H heads of a layer, L longest sequence, T tokens of a sequence.
"""

from __future__ import annotations

import numpy as np
import torch

from llm_arch.compression.anatomy import anatomy
from llm_arch.interpret.inside import Numbers
from llm_arch.types import Backbone, Batch, UserError


@torch.no_grad()
def attention_maps(backbone: Backbone, batch: Batch) -> list[tuple[Numbers, ...]]:
    """For each of the B sequences, for each layer, lowest first, (H, T, T) float32, whose rows add up to 1.

    The model attends in a way that forms these numbers for this call alone (`Pretrained.attentions`).

    Args:
        backbone: a transformer, in eval mode.
        batch: flat or padded.

    Raises:
        UserError: the model does not tell how all of its layers attend.
    """
    _, maps = backbone.attentions(batch)  # type: ignore[operator]
    lengths = batch.lengths.tolist()
    of_layers = [one.float().cpu().numpy() for one in maps]
    heads = _heads(backbone, len(maps))
    if sum(count > 0 for count in heads) != len(maps):
        raise UserError(
            f"{len(maps)} of the {len(heads)} layers of {type(backbone).__name__} tell how they attend; leave "
            "attention out"
        )
    found = []
    for sequence, length in enumerate(lengths):
        # Copies, so that what is kept of a row is no larger than that.
        told = iter([one[sequence, :, :length, :length].copy() for one in of_layers])
        empty = np.zeros((0, length, length), np.float32)
        found.append(tuple(next(told) if count else empty for count in heads))
    return found


def _heads(backbone: Backbone, told: int) -> list[int]:
    """How many heads each layer has, as far as that is known: layers without heads have no map."""
    try:
        return [part.heads for part in anatomy(backbone.model)]  # type: ignore[arg-type]
    except UserError:  # of a kind that is not pruned, so that all have some
        return [1] * told
