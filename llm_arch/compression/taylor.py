"""Importance to first order: how much the loss changes when a gate closes, by its derivative (Michel et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from llm_arch.compression.importance import Derivatives


class Taylor(Derivatives):
    """Mean over sequences of the derivative's absolute value (arXiv 1905.10650, equation 2)."""

    def of(self, derivative: Tensor) -> Tensor:
        """Its absolute value."""
        return derivative.abs()
