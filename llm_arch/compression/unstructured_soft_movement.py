"""Soft movement pruning: scores are learnt, and a penalty decides how many weights stay (Sanh et al. 2020).

Legend: O outputs and I inputs of a linear layer, N weights in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llm_arch.compression.sparsity import SparsityMethod, Weights
from llm_arch.types import UserError


class SoftMovementPruning(SparsityMethod):
    """Weights whose score has sigmoid(S) at or below a threshold are zero; the scores are learnt with the weights.

    The loss gains penalty · mean(sigmoid(S)), the penalty growing with the schedule from 0; a score's other gradient is
    w · ∂loss/∂w, and Adam takes the steps. How sparse the model becomes is an outcome: matrices that matter little
    lose more. Scores start at 0.

    Args:
        penalty: at the end of the schedule, above 0; larger makes more zeros.
        threshold: in (0, 0.5).
        learning_rate: of the scores: about so much a score can move in a step. At a threshold of 0.1 it must fall by
            2.2 for its weight to go, which a short run needs a large one for.
    """

    name = "soft movement"
    takes_sparsity = False
    straight_through = True
    needs_training = True

    def __init__(self, penalty: float = 100.0, threshold: float = 0.1, learning_rate: float = 0.01) -> None:
        if not penalty > 0:
            raise UserError(f"penalty must be above 0, got {penalty}")
        if not 0 < threshold < 0.5:
            raise UserError(f"threshold must be in (0, 0.5), got {threshold}: scores start at sigmoid(0) = 0.5")
        if not learning_rate > 0:
            raise UserError(f"learning_rate must be above 0, got {learning_rate}")
        self.penalty, self.threshold, self.learning_rate = penalty, threshold, learning_rate
        self.scores: dict[str, nn.Parameter] = {}
        self._adam: dict[str, torch.optim.Adam] = {}

    def _learn(self, name: str, score_OI: Tensor) -> nn.Parameter:
        self.scores[name] = nn.Parameter(score_OI)
        self._adam[name] = torch.optim.Adam([self.scores[name]], lr=self.learning_rate)
        return self.scores[name]

    def follow(self, name: str, weight: Tensor, gradient: Tensor, rate: float) -> None:
        """Note the gradient of a layer's scores."""
        score = self.scores.get(name)
        if score is None:
            zeros = torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
            score = self._learn(name, zeros)
        elif score.device != weight.device:  # a checkpoint's come on the CPU
            moments = self._adam[name].state_dict()
            score = self._learn(name, score.detach().to(weight.device))
            self._adam[name].load_state_dict(moments)
        score.grad = weight.float() * gradient.float()

    def advance(self, ramp: float) -> None:
        """Add the penalty, and take a step."""
        total = sum(score.numel() for score in self.scores.values())
        for name, score in self.scores.items():
            if score.grad is not None:
                share_OI = score.detach().sigmoid()
                score.grad.add_(share_OI * (1 - share_OI), alpha=ramp * self.penalty / total)
                self._adam[name].step()
                score.grad = None

    def masks(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Which weights stay, whatever the sparsity."""
        return {
            name: self.scores[name].detach().sigmoid() > self.threshold
            if name in self.scores
            else torch.ones_like(weight_OI, dtype=torch.bool)
            for name, weight_OI in weights.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The scores and their moments."""
        scores = {name: score.detach() for name, score in self.scores.items()}
        return {"scores": scores, "adam": {name: adam.state_dict() for name, adam in self._adam.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, score_OI in state["scores"].items():
            self._learn(name, score_OI)
            self._adam[name].load_state_dict(state["adam"][name])
