"""Integrated gradients (Sundararajan et al. 2017), in as many steps as each row needs, where it needs them.

The straight line from baseline to input is cut into pieces, and the integral along each is taken by Clenshaw & Curtis's
rule (1960), which for smooth functions is nearly as exact as Gauss's (Trefethen 2008) and nested: twice as many steps
go on with all gradients that there are. Its points hold both ends of a piece, so the numbers there tell exactly how far
the scores of each piece miss its part of the difference, and only the worst are refined.

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

_EDGES = (0.0, 0.25, 0.5, 1.0)  # of the pieces: what a model says changes most on the first half of the way
_FIRST = 4  # steps of each piece to begin with; fewer could add up by chance
_NOISE = 1e-6  # of the numbers themselves: what fp32 can't tell


class IntegratedGradients(Method):
    """The gradient along the line from a baseline to the input, summed up: scores add up to the difference of both.

    Args:
        baseline: what stands for nothing: the embedding of the `mask` or the `pad` token, or `zero`; None for the first
            of these that the tokenizer has. Fixed tokens stay.
        steps: points of Gauss–Legendre's rule for every row; None doubles the steps of each row until it is complete.
        error: up to which share of the difference the scores of all pieces together may miss theirs before steps are
            doubled, above 0.
        max_steps: steps at most before no more are added; a row that is not complete then says so.
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
        least = _FIRST * (len(_EDGES) - 1)
        if max_steps < least:
            raise UserError(f"max_steps must be at least {least}, got {max_steps}")
        self.baseline, self.steps, self.error, self.max_steps = baseline, steps, error, max_steps

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        line = _Line(given, self.baseline)
        rows = range(len(line.function.targets))
        if self.steps is None:
            return self._adaptive(line, list(rows))
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        scores = _weighted(line(rows, [(nodes + 1) / 2] * len(rows))[1], weights / 2)
        ends_R2 = line.ends()
        settings = [{"baseline": line.baseline, "steps": self.steps, "rule": "gauss_legendre"}] * len(rows)
        return Attribution("tokens", torch.cat(scores), ends_R2[:, 1], ends_R2[:, 0], settings)

    def _adaptive(self, line: _Line, rows: list[int]) -> Attribution:
        pieces = {row: [_Piece(*ends) for ends in zip(_EDGES, _EDGES[1:], strict=False)] for row in rows}
        wanted = {row: list(own) for row, own in pieces.items()}
        while wanted:
            jobs = [(row, piece) for row, own in wanted.items() for piece in own]
            values, products = line([row for row, _ in jobs], [piece.new() for _, piece in jobs])
            for (_, piece), value, product in zip(jobs, values, products, strict=True):
                piece.take(value, product)
            wanted = {row: worst for row in wanted if (worst := self._worst(pieces[row]))}
        ends_R2 = torch.stack([torch.stack([pieces[row][0].ends[0], pieces[row][-1].ends[-1]]) for row in rows])
        steps = [sum(piece.steps for piece in pieces[row]) for row in rows]
        settings = [{"baseline": line.baseline, "steps": n, "rule": "clenshaw_curtis"} for n in steps]
        scores = [torch.stack([piece.scores() for piece in pieces[row]]).sum(0) for row in rows]
        return Attribution("tokens", torch.cat(scores), ends_R2[:, 1], ends_R2[:, 0], settings)

    def _worst(self, pieces: Sequence[_Piece]) -> list[_Piece]:
        """The pieces that need more steps: as few as must be so that the others miss little."""
        numbers = [float(value) for piece in pieces for value in piece.ends]
        allowed = max(self.error * abs(numbers[-1] - numbers[0]), _NOISE * max(map(abs, numbers)))
        left = sum(piece.error() for piece in pieces)
        if left < allowed or sum(piece.steps for piece in pieces) >= self.max_steps:
            return []
        worst = []
        for piece in sorted(pieces, key=lambda one: -one.error()):
            if left < allowed / 2:
                break
            worst.append(piece)
            left -= piece.error()
        return worst


class _Piece:
    """A piece of the line of a row, with what is known of it.

    Args:
        start: where it begins; 0 is the baseline.
        end: where it ends; 1 is the input.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end
        self.steps = 0
        self.ends = self.products = torch.empty(0)  # (2,) numbers there, and (points, tokens)

    def new(self) -> NDArray[np.float64]:
        """The points to look at next: those of twice as many steps that are not known yet."""
        points = clenshaw_curtis(2 * self.steps)[0][1::2] if self.steps else clenshaw_curtis(_FIRST)[0]
        return self.start + (self.end - self.start) * points

    def take(self, values: Tensor, products: Tensor) -> None:
        """What was found there."""
        if self.steps:
            self.steps, self.products = 2 * self.steps, _between(self.products, products)
        else:
            self.steps, self.products, self.ends = _FIRST, products, values[[0, -1]]

    def scores(self) -> Tensor:
        """The tokens' shares of the difference of its ends."""
        (found,) = _weighted([self.products], clenshaw_curtis(self.steps)[1] * (self.end - self.start))
        return found

    def error(self) -> float:
        """How far these miss it."""
        return abs(float(self.scores().sum() - (self.ends[1] - self.ends[0])))


class _Line:
    """From the baseline to the input, of each row."""

    def __init__(self, given: Given, baseline: Embedded | None) -> None:
        self.function: RowFunction = given.function
        self.input_TE = self.function.embeddings()
        self.start_TE, self.baseline = embedded_baseline(given, self.input_TE, baseline)

    def __call__(self, rows: Sequence[int], points: Sequence[NDArray[np.float64]]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each row: its numbers at some points of its line, and (points, tokens) gradients times the whole line.

        Args:
            rows: which rows, each as often as wanted.
            points: those of each; 0 is the baseline and 1 the input.
        """
        counts = [len(own) for own in points]
        repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        at = torch.tensor(np.concatenate(points), dtype=self.input_TE.dtype, device=self.input_TE.device)
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
        edges = np.cumsum([0, *counts])
        slices = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
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
