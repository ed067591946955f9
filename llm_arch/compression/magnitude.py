"""Importance by the weights alone: the norm of what a unit writes back into the states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from llm_arch.compression.anatomy import LayerParts
from llm_arch.compression.importance import Importance, LossOf, Scores
from llm_arch.types import Batch


class Magnitude(Importance):
    """Squared norm of the columns of the output projection that belong to a unit; a layer's is the sum of its own."""

    def __call__(self, parts: Sequence[LayerParts], loss_of: LossOf, batches: Iterable[Batch]) -> Scores:
        """Scores; the batches are not looked at."""
        heads = [_squares(part.attention_out, part.heads) for part in parts]
        neurons = [_squares(part.ffn_out, part.neurons) for part in parts]
        layers = torch.stack([h.sum() + n.sum() for h, n in zip(heads, neurons, strict=True)])
        return Scores(heads, neurons, layers)


def _squares(projection: nn.Module, units: int) -> Tensor:
    if units == 0:
        return torch.zeros(0)
    weight = projection.weight
    assert isinstance(weight, Tensor)
    columns = weight if isinstance(projection, nn.Linear) else weight.T  # transformers' Conv1D is the other way round
    return columns.detach().float().square().sum(0).unflatten(0, (units, -1)).sum(-1).cpu()
