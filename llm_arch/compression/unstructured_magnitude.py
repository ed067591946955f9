"""Pruning of the smallest weights (Han et al. 2015; Zhu & Gupta 2017)."""

from __future__ import annotations

from torch import Tensor

from llm_arch.compression.sparsity import Scope, SparsityMethod, Weights, check_scope, masks_within


class MagnitudePruning(SparsityMethod):
    """The weights of smallest magnitude are zero.

    Args:
        scope: `global` compares all matrices with each other, so that some lose more than others; `matrix` takes the
            same share of each.
    """

    name = "magnitude"

    def __init__(self, scope: Scope = "global") -> None:
        check_scope(scope)
        self.scope: Scope = scope

    def masks(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Which weights stay."""
        return masks_within({name: weight_OI.abs() for name, weight_OI in weights.items()}, sparsity, self.scope)
