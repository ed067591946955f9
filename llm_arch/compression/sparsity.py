"""Unstructured pruning: which weights of a model's matrices are zero. What all methods share.

Legend: O outputs and I inputs of a linear layer, R rows that are compared within themselves, N numbers of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm_arch.types import Batch, UserError
from llm_arch.types.parts import Configured

Scope = Literal["global", "matrix"]
Weights = Mapping[str, Tensor]  # by the layer's name, each (O, I)


class SparsityMethod(Configured, ABC):
    """A way to choose the weights that are zero; `Wanda` and its like are what users write as `class_path`.

    Masks follow from scores and the sparsity that is asked for, not from earlier masks: asking twice for half of the
    weights leaves a half.

    Attributes:
        name: what it is called in messages and records.
        takes_sparsity: whether the sparsity is the user's to choose; else it is `sparsity`.
        sparsity: the share of zeros that the method itself implies, or None where only its outcome tells.
        straight_through: whether pruned weights keep their values behind the mask and can return: gradients are those
            of the masked model, taken at the weights as they would be.
        needs_training: whether scores come from gradients of a training run.
        note: what uses such zeros, for the message at the end of a run.
    """

    name: str
    takes_sparsity: bool = True
    sparsity: float | None = None
    straight_through: bool = False
    needs_training: bool = False
    note: str = "a CPU is as fast as before unless its runtime skips zeros"

    @abstractmethod
    def masks(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Which weights stay: bool tensors of the weights' shapes.

        Args:
            weights: of the layers that are pruned together; those already pruned are zero.
            sparsity: share of them to be zero, in [0, 1).
        """

    def check(self, weights: Weights) -> None:  # noqa: B027 - a hook
        """Raise UserError where it can't prune such matrices."""

    def watch(self, layers: Mapping[str, nn.Module]) -> None:  # noqa: B027 - a hook
        """Look at what goes through these layers from now on, for methods that need to."""

    def see(self, batch: Batch | None) -> None:  # noqa: B027 - a hook
        """Be told of the batch that goes through them next; None for what is not to be looked at."""

    def gather(self, over_ranks: Callable[[Tensor], Tensor]) -> None:  # noqa: B027 - a hook
        """Take what was seen since the last time into the scores.

        Args:
            over_ranks: sums a tensor over all ranks, so that their scores are equal.
        """

    def follow(self, name: str, weight: Tensor, gradient: Tensor, rate: float) -> None:  # noqa: B027 - a hook
        """Take one step's gradient of a layer into the scores.

        Args:
            name: the layer.
            weight: (O, I) as it was before the step, pruned weights with their values behind the mask.
            gradient: (O, I) of the mean loss.
            rate: learning rate of the step.
        """

    def advance(self, ramp: float) -> None:  # noqa: B027 - a hook
        """Called after the gradients of a step are followed, for methods that take steps of their own.

        Args:
            ramp: how far the schedule is, in [0, 1].
        """

    def unwatch(self) -> None:  # noqa: B027 - a hook
        """Look no longer."""

    def state_dict(self) -> dict[str, Any]:
        """Scores and what else a resumed run goes on with."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - a hook
        """Go on from there."""


@torch.no_grad()
def mask(scores_RN: Tensor, sparsity: float) -> Tensor:
    """Which numbers of each row stay: all but its round(sparsity · N) smallest; of equals the first ones go.

    Args:
        scores_RN: (…, N), larger is more important.
        sparsity: in [0, 1].

    Returns:
        bool, of the same shape; exactly as many are False in each row.
    """
    pruned = round(sparsity * scores_RN.shape[-1])
    if pruned == 0:
        return torch.ones_like(scores_RN, dtype=torch.bool)
    threshold_R1 = scores_RN.kthvalue(pruned, dim=-1, keepdim=True).values
    below_RN, equal_RN = scores_RN < threshold_R1, scores_RN == threshold_R1
    room_R1 = pruned - below_RN.sum(-1, keepdim=True)
    return ~(below_RN | (equal_RN & (equal_RN.cumsum(-1) <= room_R1)))


def masks_within(scores: Weights, sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Masks of several matrices, `global`: the smallest of all go, or `matrix`: of each matrix the same share."""
    if scope == "matrix":
        return {name: mask(score_OI.flatten(), sparsity).view(score_OI.shape) for name, score_OI in scores.items()}
    flat = mask(torch.cat([score_OI.flatten() for score_OI in scores.values()]), sparsity)
    parts = flat.split([score_OI.numel() for score_OI in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def check_scope(scope: str) -> None:
    """Raise UserError for what is no scope."""
    if scope not in ("global", "matrix"):
        raise UserError(f"scope must be global or matrix, got {scope!r}")


def check_sparsity(sparsity: float) -> None:
    """Raise UserError for what is no share of zeros."""
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity must be in [0, 1), the share of weights that become zero, got {sparsity}")
