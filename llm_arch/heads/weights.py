"""Weights of classes in a loss, so that rare labels are not drowned by frequent ones.

Legend: C classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llm_arch.types import LabelSpace, UserError

ClassWeights = Literal["balanced"] | dict[str, float]


def weights_of(weights: ClassWeights | None, labels: LabelSpace) -> Tensor | None:
    """(C,) weights, or None for none.

    Args:
        weights: `balanced` for N / (C · count of the label); a mapping from label to weight, 1 where not named.
        labels: the labels, with counts where balanced.

    Raises:
        UserError: for an unknown label, a weight that is negative or not finite, or balanced weights without counts.
    """
    if weights is None:
        return None
    if isinstance(weights, dict):
        values = torch.ones(len(labels))
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"class_weights must be finite and not negative, got {weight} for {name!r}")
            values[labels.index(name)] = weight
        return values
    if weights != "balanced":
        raise UserError(f"class_weights must be balanced or a mapping from label to weight, got {weights!r}")
    if labels.counts is None:
        raise UserError("class_weights: balanced needs label counts, which only training data gives")
    counts_C = torch.tensor(labels.counts, dtype=torch.float)
    return counts_C.sum() / (len(labels) * counts_C.clamp(min=1))
