"""Pruning by weights and activations (Wanda; Sun et al. 2023, arXiv 2306.11695).

Legend: O outputs and I inputs of a linear layer.
"""

from __future__ import annotations

from torch import Tensor

from llm_arch.compression.input_norms import LooksAtInputs
from llm_arch.compression.sparsity import Weights, mask


class WandaPruning(LooksAtInputs):
    """Of each output's weights, those with the smallest |w| · ‖input‖₂ are zero: a weight on a large input counts more.

    Every output loses the same share of its inputs. Needs no gradient: good without training, from a few batches.
    """

    name = "Wanda"

    def masks(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Which weights stay."""
        return {
            name: mask(weight_OI.abs().float() * self.inputs.norms(name, weight_OI), sparsity)
            for name, weight_OI in weights.items()
        }
