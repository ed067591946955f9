"""Integrated gradients (Sundararajan et al. 2017), in as many steps as each row needs.

The integral along the straight line from baseline to input is taken by Clenshaw & Curtis's rule (1960), which for
smooth functions is nearly as exact as Gauss's (Trefethen 2008) and nested: twice as many steps go on with all gradients
that there are, and both ends of the line, whose numbers completeness is measured by, are points of it.

Legend: T tokens of the batch, R rows, N points on the lines of all rows, K tokens of these, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_arch.interpret.baselines import Embedded, check_baseline, embedded_baseline
from llm_arch.interpret.function import RowFunction
from llm_arch.interpret.method import Attribution, Given, Method
from llm_arch.types import UserError

_FIRST = 8  # steps to begin with; fewer could add up by chance
_NOISE = 1e-6  # of the numbers themselves: what fp32 can't tell


class IntegratedGradients(Method):
    """The gradient along the line from a baseline to the input, summed up: scores add up to the difference of both.

    Args:
        baseline: what stands for nothing: the embedding of the `mask` or the `pad` token, or `zero`; None for the first
            of these that the tokenizer has. Fixed tokens stay.
        steps: points of Gauss–Legendre's rule for every row; None doubles the steps of each row until it is complete.
        error: up to which share of the difference scores may miss it before steps are doubled, above 0.
        max_steps: steps at most; a row that is not complete then says so.
    """

    name = "integrated_gradients"
    needs = "gradients"

    def __init__(
        self,
        *,
        baseline: Embedded | None = None,
        steps: int | None = None,
        error: float = 0.01,
        max_steps: int = 1024,
    ) -> None:
        check_baseline(baseline, ("mask", "pad", "zero"))
        if steps is not None and steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        if not error > 0:
            raise UserError(f"error must be above 0, got {error}")
        if max_steps < _FIRST:
            raise UserError(f"max_steps must be at least {_FIRST}, got {max_steps}")
        self.baseline, self.steps, self.error, self.max_steps = baseline, steps, error, max_steps

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        line = _Line(given, self.baseline)
        rows = range(len(line.function.targets))
        if self.steps is None:
            return self._adaptive(line, list(rows))
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        scores = _weighted(line(rows, (nodes + 1) / 2)[1], weights / 2)
        ends_R2 = line.ends()
        settings = [{"baseline": line.baseline, "steps": self.steps, "rule": "gauss_legendre"}] * len(rows)
        return Attribution("tokens", torch.cat(scores), ends_R2[:, 1], ends_R2[:, 0], settings)

    def _adaptive(self, line: _Line, rows: list[int]) -> Attribution:
        steps, points = _FIRST, clenshaw_curtis(_FIRST)[0]
        seen: dict[int, Tensor] = {}  # (points, tokens) of each row, from baseline to input
        scores, ends, taken = [torch.empty(0)] * len(rows), [torch.empty(0)] * len(rows), [0] * len(rows)
        while rows:
            values, products = line(rows, points)
            for row, value, product in zip(rows, values, products, strict=True):
                if row in seen:
                    product = _between(seen[row], product)
                else:
                    ends[row] = value[[0, -1]]
                seen[row] = product
                (scores[row],) = _weighted([product], clenshaw_curtis(steps)[1])
                taken[row] = steps
            rows = [row for row in rows if steps < self.max_steps and not self._complete(scores[row], ends[row])]
            steps *= 2
            points = clenshaw_curtis(steps)[0][1::2]
        ends_R2 = torch.stack(ends)
        settings = [{"baseline": line.baseline, "steps": n, "rule": "clenshaw_curtis"} for n in taken]
        return Attribution("tokens", torch.cat(scores), ends_R2[:, 1], ends_R2[:, 0], settings)

    def _complete(self, scores: Tensor, ends: Tensor) -> bool:
        difference = float(ends[1] - ends[0])
        missing = abs(float(scores.sum()) - difference)
        return missing < self.error * abs(difference) or missing <= _NOISE * float(ends.abs().max())


class _Line:
    """From the baseline to the input, of each row."""

    def __init__(self, given: Given, baseline: Embedded | None) -> None:
        self.function: RowFunction = given.function
        self.input_TE = self.function.embeddings()
        self.start_TE, self.baseline = embedded_baseline(given, self.input_TE, baseline)

    def __call__(self, rows: Sequence[int], points: NDArray[np.float64]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each row: its numbers at some points of its line, and (points, tokens) gradients times the whole line.

        Args:
            rows: which rows.
            points: 0 is the baseline and 1 the input.
        """
        repeated = [row for row in rows for _ in points]
        at = torch.tensor(np.tile(points, len(rows)), dtype=self.input_TE.dtype, device=self.input_TE.device)
        values: list[Tensor] = []
        products: list[Tensor] = []
        for part in self.function.rows.chunks(repeated, self.function.tokens):
            taken = self.function.rows.take(repeated[part])
            start_KE = self.start_TE[taken.token_K]
            line_KE = self.input_TE[taken.token_K] - start_KE
            embeds_KE = start_KE + at[part][taken.row_K, None] * line_KE
            value_N, gradient_KE = self.function.gradients(repeated[part], taken, embeds_KE)
            product_K = (gradient_KE * line_KE).sum(1)
            values += value_N
            products += product_K.to(value_N.dtype).split([self.function.rows.lengths[row] for row in repeated[part]])
        count = len(points)
        slices = [slice(i * count, (i + 1) * count) for i in range(len(rows))]
        return [torch.stack(values[s]) for s in slices], [torch.stack(products[s]) for s in slices]

    @torch.no_grad()
    def ends(self) -> Tensor:
        """(R, 2): the numbers of baseline and input."""
        rows = self.function.rows
        everyone = list(range(len(self.function.targets)))
        found = []
        for part in rows.chunks(everyone, self.function.tokens):
            batch, token_K, _ = rows.take(everyone[part])
            both = [self.function.run(everyone[part], batch, x[token_K]) for x in (self.start_TE, self.input_TE)]
            found.append(torch.stack(both, 1))
        return torch.cat(found)


@cache
def clenshaw_curtis(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights, `steps` + 1 each, on [0, 1]; those of half as many steps are every second of the points.

    Args:
        steps: even.
    """
    k = np.arange(steps + 1)
    j = np.arange(1, steps // 2 + 1)
    factors = np.where(j == steps // 2, 1.0, 2.0) / (4.0 * j**2 - 1)
    weights = (1 - np.cos(2 * np.pi * np.outer(k, j) / steps) @ factors) / steps
    weights[[0, -1]] /= 2
    return (1 - np.cos(np.pi * k / steps)) / 2, weights


def _weighted(products: Sequence[Tensor], weights: NDArray[np.float64]) -> list[Tensor]:
    return [torch.tensor(weights, dtype=one.dtype, device=one.device) @ one for one in products]


def _between(old: Tensor, new: Tensor) -> Tensor:
    """The new points' rows between those of the old ones."""
    both = old.new_empty(len(old) + len(new), old.shape[1])
    both[::2], both[1::2] = old, new
    return both
