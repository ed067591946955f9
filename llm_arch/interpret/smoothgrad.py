"""SmoothGrad (Smilkov et al. 2017): gradients at inputs with noise, averaged, times the input.

Legend: T tokens of the batch, N noisy rows, K tokens of these, E embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_arch.interpret.method import Attribution, Given, Method
from llm_arch.types import UserError


class SmoothGrad(Method):
    """The mean gradient around a token's embedding, times the embedding.

    Args:
        samples: noisy inputs a row.
        noise: standard deviation of the noise, as a share of the range of the row's embeddings, at least 0.
        seed: of the noise; a row has the same noise in whatever company.
    """

    name = "smoothgrad"
    needs = "gradients"

    def __init__(self, *, samples: int = 16, noise: float = 0.1, seed: int = 0) -> None:
        if samples < 1:
            raise UserError(f"samples must be at least 1, got {samples}")
        if noise < 0:
            raise UserError(f"noise must not be negative, got {noise}")
        self.samples, self.noise, self.seed = samples, noise, seed

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        function, embeds_TE = given.function, given.function.embeddings()
        everyone = list(range(len(function.targets)))
        noise = [self._noise(x) for x in embeds_TE.split(function.rows.lengths)]
        repeated = [(row, sample) for row in everyone for sample in range(self.samples)]
        gradient_TE = torch.zeros_like(embeds_TE)
        for part in function.rows.chunks([row for row, _ in repeated], function.tokens):
            rows = [row for row, _ in repeated[part]]
            taken = function.rows.take(rows)
            noise_KE = torch.cat([noise[row][sample] for row, sample in repeated[part]])
            _, gradient_KE = function.gradients(rows, taken, embeds_TE[taken.token_K] + noise_KE)
            gradient_TE.index_add_(0, taken.token_K, gradient_KE)
        values = []
        with torch.no_grad():
            for part in function.rows.chunks(everyone, function.tokens):
                values.append(function.run(everyone[part], function.rows.take(everyone[part]).batch))
        value_R = torch.cat(values)
        scores_T = (gradient_TE * embeds_TE).sum(1).to(value_R.dtype) / self.samples
        settings = [{"samples": self.samples, "noise": self.noise, "seed": self.seed}] * len(everyone)
        return Attribution("tokens", scores_T, value_R, None, settings)

    def _noise(self, row_TE: Tensor) -> Tensor:
        """(samples, T, E) of one row."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.samples, *row_TE.shape, generator=generator).to(row_TE)
        return drawn * (row_TE.max() - row_TE.min()) * self.noise
