"""Movement pruning: the weights that training moves towards zero go (Sanh et al. 2020, arXiv 2005.07683)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm_arch.compression.sparsity import Scope, SparsityMethod, Weights, check_scope, masks_within


class MovementPruning(SparsityMethod):
    """The weights with the smallest scores S = −Σ rate · w · ∂loss/∂w are zero: those that have shrunk, or would have.

    Where magnitude keeps what pretraining made large, this keeps what the task at hand makes larger, which is better at
    high sparsity. A pruned weight keeps its value and its score changes further, so that it can return as long as the
    schedule runs; gradients are those of the masked model (straight-through).

    Args:
        scope: `matrix` takes the same share of each matrix, `global` compares all with each other: where gradients are
            small, as in the first steps those of queries and keys, whole matrices can go.
    """

    name = "movement"
    straight_through = True
    needs_training = True

    def __init__(self, scope: Scope = "matrix") -> None:
        check_scope(scope)
        self.scope: Scope = scope
        self.scores: dict[str, Tensor] = {}

    def follow(self, name: str, weight: Tensor, gradient: Tensor, rate: float) -> None:
        """Add the movement of one step."""
        if name not in self.scores:
            self.scores[name] = torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
        # A checkpoint's scores come on the CPU.
        score_OI = self.scores[name] = self.scores[name].to(weight.device)
        score_OI.addcmul_(weight.float(), gradient.float(), value=-rate)

    def masks(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Which weights stay; those without a gradient so far count as unmoved."""
        zeros = torch.zeros_like
        scores = {n: self.scores[n].to(w.device) if n in self.scores else zeros(w).float() for n, w in weights.items()}
        return masks_within(scores, sparsity, self.scope)

    def state_dict(self) -> dict[str, Any]:
        """The scores."""
        return {"scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.scores = dict(state["scores"])
