"""Importance by the empirical Fisher information: half the mean over rows of the squared derivative by a gate.

It is the second-order estimate of what the loss gains when the gate closes, where the model fits its rows (Molchanov et
al. 2019, arXiv 1906.10771; Kwon et al. 2022, arXiv 2204.09656).
"""

from __future__ import annotations

from torch import Tensor

from llm_arch.compression.importance import Derivatives


class Fisher(Derivatives):
    """Half the mean over sequences of the squared derivative."""

    def of(self, derivative: Tensor) -> Tensor:
        """Half its square."""
        return derivative.square() / 2
