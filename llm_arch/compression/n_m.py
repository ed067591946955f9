"""N:M sparsity: of M neighbouring inputs at most N have a weight (Mishra et al. 2021, arXiv 2104.08378).

Legend: O outputs and I inputs of a linear layer, G = I / M groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from llm_arch.compression.input_norms import LooksAtInputs
from llm_arch.compression.sparsity import Weights, mask
from llm_arch.types import UserError


class NMPruning(LooksAtInputs):
    """Of every M weights that lie side by side in an output's row, the N with the largest scores stay.

    On the way of a schedule 1, 2, … of a group are zero.

    Args:
        n: weights that stay, at least 1.
        m: weights of a group, above n; must divide the inputs of every layer.
        by: the scores: `magnitude`, or `wanda` for |w| · ‖input‖₂.
    """

    takes_sparsity = False

    def __init__(self, n: int = 2, m: int = 4, by: Literal["magnitude", "wanda"] = "magnitude") -> None:
        if not 1 <= n < m:
            raise UserError(f"n must be at least 1 and below m, got n={n}, m={m}")
        if by not in ("magnitude", "wanda"):
            raise UserError(f"by must be magnitude or wanda, got {by!r}")
        self.n, self.m, self.by = n, m, by
        self.sparsity = 1 - n / m
        self.name = f"{n}:{m}"
        if (n, m) == (2, 4):
            self.note = "GPUs from NVIDIA's Ampere on have kernels for it (torch.sparse), CPUs are as fast as before"
        super().__init__()

    def check(self, weights: Weights) -> None:
        """Refuse inputs that make no whole groups."""
        for name, weight_OI in weights.items():
            if weight_OI.shape[1] % self.m:
                raise UserError(
                    f"{self.name} needs inputs in groups of {self.m}, {name} has {weight_OI.shape[1]}; "
                    "choose another m, or leave the layer out with modules"
                )

    def masks(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Which weights stay."""
        found = {}
        for name, weight_OI in weights.items():
            score_OI = weight_OI.abs().float()
            if self.by == "wanda":
                score_OI = score_OI * self.inputs.norms(name, weight_OI)
            found[name] = mask(score_OI.unflatten(1, (-1, self.m)), sparsity).flatten(1)
        return found

    def watch(self, layers: Mapping[str, nn.Module]) -> None:
        """Look at the inputs of these layers from now on, where they count."""
        if self.by == "wanda":
            super().watch(layers)
