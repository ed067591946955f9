"""Metrics of predicted numbers: exact for any batch size and number of ranks, since all numbers are kept.

Legend: R rows, V values that differ.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class NumberMetrics(Metric):
    """Correlation of predicted and true numbers, and how far they are apart.

    `pearson` is the linear correlation; `spearman` that of the ranks, equal numbers having their mean rank; both are 0
    where either side is one number throughout, for which they are not defined. `rmse` is the root of the mean squared
    difference and `mae` the mean absolute one, in the unit of the numbers.
    """

    full_state_update = False
    predicted: list[Tensor]
    truth: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predicted", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Keep one batch.

        Args:
            predicted: (R,) numbers.
            truth: (R,) numbers.
        """
        self.predicted.append(predicted.detach())
        self.truth.append(truth.detach())

    def compute(self) -> dict[str, Tensor]:
        """`pearson`, `spearman`, `rmse` and `mae`; 0 where nothing was counted."""
        if len(self.predicted) == 0:  # a list, or one tensor once ranks are gathered
            return dict.fromkeys(("pearson", "spearman", "rmse", "mae"), torch.zeros((), device=self.device))
        predicted_R, truth_R = dim_zero_cat(self.predicted).double(), dim_zero_cat(self.truth).double()
        error_R = predicted_R - truth_R
        found = {
            "pearson": correlation(predicted_R, truth_R),
            "spearman": correlation(ranks(predicted_R), ranks(truth_R)),
            "rmse": error_R.square().mean().sqrt(),
            "mae": error_R.abs().mean(),
        }
        return {name: value.float() for name, value in found.items()}


def correlation(one_R: Tensor, other_R: Tensor) -> Tensor:
    """Pearson's coefficient, in [-1, 1]; 0 where either side is one number throughout."""
    if any(bool((side_R == side_R[0]).all()) for side_R in (one_R, other_R)):
        return one_R.new_zeros(())
    # Scaled first, so that squares of tiny or huge numbers stay numbers.
    a_R, b_R = (side_R / side_R.abs().max() for side_R in (one_R - one_R.mean(), other_R - other_R.mean()))
    return ((a_R * b_R).sum() / (a_R.norm() * b_R.norm())).clamp(-1, 1)


def ranks(values_R: Tensor) -> Tensor:
    """(R,) ranks from 1, smallest first; equal numbers have the mean of their ranks. NaN where any value is NaN."""
    _, place_R, count_V = torch.unique(values_R, return_inverse=True, return_counts=True)
    last_V = count_V.cumsum(0).to(values_R.dtype)
    rank_R = (last_V - (count_V - 1) / 2)[place_R]
    return torch.where(values_R.isnan().any(), torch.nan, rank_R)
