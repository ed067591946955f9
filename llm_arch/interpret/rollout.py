"""What flows from words through attention to what the head reads: rollout, and attention times its gradient.

Where the head reads is told by the gradient of the number with respect to the last states: tokens count by its norm.
For a head on the first token that is this token alone, for one on the mean all tokens alike.

Legend: N rows, K tokens of these, B sequences, H heads, L longest sequence, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_arch.backbones.padding import Grid
from llm_arch.interpret.function import RowFunction, per_row
from llm_arch.interpret.method import Attribution, Given, Method


class _ThroughAttention(Method):
    needs = "attention"

    @abstractmethod
    def flow(self, read_BL: Tensor, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """(B, L) how much of each token arrives where the head reads.

        Args:
            read_BL: how much it reads of each token's last state.
            maps: (B, H, L, L) how each layer attends, lowest first.
            gradients: of the explained numbers with respect to these.
        """

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        function = given.function
        everyone = list(range(len(function.targets)))
        scores, values = [], []
        for part in function.rows.chunks(everyone, function.tokens):
            value_N, scores_K = self._run(function, everyone[part])
            values.append(value_N)
            scores.append(scores_K)
        return Attribution("tokens", torch.cat(scores), torch.cat(values), None, [{}] * len(everyone))

    def _run(self, function: RowFunction, rows: list[int]) -> tuple[Tensor, Tensor]:
        batch, token_K, row_K = function.rows.take(rows)
        embeds_KE = function.embeddings()[token_K].requires_grad_()  # so that there is a graph
        with torch.enable_grad():
            hidden, maps = function.backbone.attentions(batch, embeds_KE)  # type: ignore[operator]
            targets = [function.targets[row] for row in rows]
            value_N = function.head.explained(function.head(hidden, batch), batch, targets)
            # A map has no part in it where a head reads no more than what does not go through it.
            found = torch.autograd.grad(value_N.sum(), [hidden.last_TD, *maps], materialize_grads=True)
        exact = value_N.dtype
        read_K = found[0].to(exact).norm(dim=1)
        read_K = read_K / per_row(read_K, row_K, len(rows)).clamp(min=torch.finfo(exact).tiny)[row_K]
        grid = Grid(batch)
        flow_BL = self.flow(
            grid.pad(read_K) * grid.real_BL,
            [one.detach().to(exact) for one in maps],
            [gradient.to(exact) for gradient in found[1:]],
        )
        return value_N.detach(), grid.unpad(flow_BL)


class Rollout(_ThroughAttention):
    """Attention rollout (Abnar & Zuidema 2020): the product over layers of attention, with half of each token's own.

    The mean over heads stands for a layer. It says what could have flowed, for whatever target.
    """

    name = "rollout"

    def flow(self, read_BL: Tensor, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """(B, L); a row's add up to 1."""
        for map_BHLL in reversed(maps):
            read_BL = (read_BL + (read_BL[:, None] @ map_BHLL.mean(1))[:, 0]) / 2
        return read_BL


class AttentionXGradient(_ThroughAttention):
    """Attention times its gradient, where that is above 0, added up over layers (Chefer et al. 2021)."""

    name = "attention_x_gradient"

    def flow(self, read_BL: Tensor, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """(B, L), at least 0; what a token keeps of itself is left out."""
        flow_BL = read_BL
        for map_BHLL, gradient_BHLL in zip(reversed(maps), reversed(gradients), strict=True):
            relevant_BLL = (map_BHLL * gradient_BHLL).clamp(min=0).mean(1)
            flow_BL = flow_BL + (flow_BL[:, None] @ relevant_BLL)[:, 0]
        return flow_BL - read_BL
