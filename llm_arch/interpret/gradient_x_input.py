"""Gradient times input (Shrikumar et al. 2016): one forward and one backward pass.

Legend: T tokens of the batch, E embedding size.
"""

from __future__ import annotations

import torch

from llm_arch.interpret.method import Attribution, Given, Method


class GradientXInput(Method):
    """The gradient with respect to each token's embedding, times the embedding: exact for linear models alone."""

    name = "gradient_x_input"
    needs = "gradients"

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        function, embeds_TE = given.function, given.function.embeddings()
        everyone = list(range(len(function.targets)))
        scores, values = [], []
        for part in function.rows.chunks(everyone, function.tokens):
            taken = function.rows.take(everyone[part])
            input_KE = embeds_TE[taken.token_K]
            value_N, gradient_KE = function.gradients(everyone[part], taken, input_KE)
            values.append(value_N)
            scores.append((gradient_KE * input_KE).sum(1).to(value_N.dtype))
        return Attribution("tokens", torch.cat(scores), torch.cat(values), None, [{}] * len(everyone))
