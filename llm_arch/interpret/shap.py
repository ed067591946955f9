"""Shapley values (Shapley 1953) by sampling orders (Castro et al. 2009), each with its reverse (Mitchell et al. 2022).

Legend: R rows, U words or tokens of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_arch.interpret.baselines import Replaced, check_baseline
from llm_arch.interpret.method import Attribution, Given, Method
from llm_arch.interpret.replacing import By, Replacing, check_by
from llm_arch.types import UserError


class Shap(Method):
    """What a word adds to the number, on average over the orders in which words can come in.

    Scores add up to the difference between all words and none, whatever the number of orders.

    Args:
        by: `words` or `tokens`.
        baseline: what stands where a word is not there yet: the `mask`, `pad`, `unknown` or `end` token, or nothing
            (`remove`); None for the first of these that the tokenizer has.
        orders: how many orders; half of them are the reverse of the others.
        seed: of the orders; a row has the same ones in whatever company.
    """

    name = "shap"
    needs = "tokens"

    def __init__(self, *, by: By = "words", baseline: Replaced | None = None, orders: int = 16, seed: int = 0) -> None:
        check_by(by)
        check_baseline(baseline, ("mask", "pad", "unknown", "end", "remove"))
        if orders < 2 or orders % 2:
            raise UserError(f"orders must be even and at least 2, half of them being reverses, got {orders}")
        self.by: By = by
        self.baseline, self.orders, self.seed = baseline, orders, seed

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        replacing = Replacing(given, self.by, self.baseline)
        counts = [len(units) for units in replacing.units]
        orders = [self._orders(count) for count in counts]
        runs: list[tuple[int, list[int]]] = []
        for row, count in enumerate(counts):
            runs += [(row, []), (row, list(range(count)))]
            # After the first, the second, … of an order have come in; none and all are the same in every order.
            runs += [(row, order[come:]) for order in orders[row] for come in range(1, count)]
        found = replacing([row for row, _ in runs], [gone for _, gone in runs])
        parts = found.split([2 + self.orders * max(0, count - 1) for count in counts])
        scores = [_means(part, own, count) for part, own, count in zip(parts, orders, counts, strict=True)]
        value_R, baseline_R = (torch.stack([part[i] for part in parts]) for i in (0, 1))
        settings = [{"by": self.by, "baseline": replacing.baseline, "orders": self.orders, "seed": self.seed}]
        return Attribution(self.by, replacing.scores(scores), value_R, baseline_R, settings * len(counts))

    def _orders(self, count: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randperm(count, generator=generator).tolist() for _ in range(self.orders // 2)]
        return [order for one in drawn for order in (one, one[::-1])]


def _means(found: Tensor, orders: list[list[int]], count: int) -> Tensor:
    """(U,) the mean of what each word added.

    Args:
        found: the number of all words and of none, then those between of each order.
        orders: the orders.
        count: U.
    """
    total_U = found.new_zeros(count)
    between = found[2:].split(count - 1) if count > 1 else [found[2:]] * len(orders)
    for order, some in zip(orders, between, strict=True):
        if order:
            chain = torch.cat([found[1:2], some, found[:1]])
            total_U[order] += chain.diff()
    return total_U / len(orders)
