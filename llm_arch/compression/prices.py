"""What the parts of a transformer cost, in whatever is to be saved: seconds a row, or multiply-accumulates a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sizes = Sequence[tuple[int, int] | None]
"""For each layer its heads and its neurons, or None where the layer is not there."""


@dataclass(frozen=True)
class Prices:
    """Costs that add up to a model's.

    Attributes:
        heads: (H + 1,) what the heads of a layer cost by their number, from none; `heads[0]` is 0.
        neurons: (N + 1,) what the neurons of a layer cost by their number, from none; `neurons[0]` is 0.
        layer: what a layer costs besides.
        outside: what a model costs besides its layers.
    """

    heads: NDArray[np.float64]
    neurons: NDArray[np.float64]
    layer: float
    outside: float

    def total(self, sizes: Sizes) -> float:
        """What a model of these sizes costs.

        Args:
            sizes: heads and neurons of each layer, None for a layer that is not there.
        """
        return self.outside + sum(self.of_layer(*size) for size in sizes if size is not None)

    def of_layer(self, heads: int, neurons: int) -> float:
        """What one layer costs."""
        return float(self.layer + self.heads[heads] + self.neurons[neurons])

    def to_dict(self) -> dict[str, Any]:
        """For JSON and checkpoints."""
        return {
            "heads": self.heads.tolist(),
            "neurons": self.neurons.tolist(),
            "layer": float(self.layer),
            "outside": float(self.outside),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prices:
        """What `to_dict` gave."""
        return cls(np.array(values["heads"]), np.array(values["neurons"]), values["layer"], values["outside"])
