"""How far a student's probabilities over a vocabulary are from a teacher's, without either's logits held whole.

Legend: M rows that say something about the vocabulary, C rows of a chunk, V vocabulary, E the student's embedding size,
F the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_arch.heads.vocabulary import AT_ONCE, cast_for_products, dtype_of_sums

# States (M, E), projection (V, E) and bias (V,) or None: what logits are computed of.
Parts = tuple[Tensor, Tensor, Tensor | None]


def vocabulary_divergence(student: Parts, teacher: Parts, temperature: float, at_once: int = AT_ONCE // 4) -> Tensor:
    """Kullback–Leibler divergence of the student's softmax from the teacher's, summed over rows, in fp32.

    Both at a temperature, the sum times its square (Hinton et al. 2015, arXiv 1503.02531). Gradients of the student's
    parts are computed along with it, while a chunk's logits are there, so it can be differentiated once. Under autocast
    products are of its dtype; softmax and sums are in fp32.

    Args:
        student: states (M, E), projection (V, E), bias (V,) or None.
        teacher: the same with a size F of its own; gets no gradients.
        temperature: what logits are divided by, above 0.
        at_once: how many logits of each may be held at a time.
    """
    found: Tensor = _Divergence.apply(*student, *teacher, temperature, at_once)
    return found


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        wanted_MF: Tensor,
        weight_VF: Tensor,
        wanted_bias_V: Tensor | None,
        temperature: float,
        at_once: int,
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        low_ME, low_VE = cast_for_products(hidden_ME, weight_VE)
        low_MF, low_VF = cast_for_products(wanted_MF, weight_VF)
        wide = dtype_of_sums(weight_VE)
        total = hidden_ME.new_zeros((), dtype=wide)
        grad_ME = torch.zeros_like(low_ME) if of_hidden else None
        grad_VE = torch.zeros_like(weight_VE, dtype=wide) if of_weight else None
        grad_V = hidden_ME.new_zeros(len(weight_VE), dtype=wide) if of_bias else None
        for chunk in _chunks(len(low_ME), len(low_VE), at_once):
            ours_CV = _log_softmax(low_ME[chunk], low_VE, bias_V, temperature, wide)
            theirs_CV = _log_softmax(low_MF[chunk], low_VF, wanted_bias_V, temperature, wide)
            chance_CV = theirs_CV.exp()
            total += (chance_CV * theirs_CV.sub_(ours_CV)).sum()
            # The gradient of the logits: the difference of the probabilities, over the temperature, times its square.
            step_CV = ours_CV.exp_().sub_(chance_CV).mul_(temperature)
            if grad_V is not None:
                grad_V += step_CV.sum(0)
            low_CV = step_CV.to(low_VE.dtype)
            if grad_ME is not None:
                grad_ME[chunk] = low_CV @ low_VE
            if grad_VE is not None:
                grad_VE += (low_CV.T @ low_ME[chunk]).to(wide)
        pairs = ((grad_ME, hidden_ME), (grad_VE, weight_VE), (grad_V, bias_V))
        ctx.gradients = [None if grad is None or like is None else grad.to(like.dtype) for grad, like in pairs]
        return total * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the divergence over a vocabulary can be differentiated once; compute it again")
        return (*(None if grad is None else grad.mul_(outer[0]) for grad in gradients), None, None, None, None, None)


def _chunks(rows: int, vocabulary: int, at_once: int) -> Iterator[slice]:
    count = max(1, math.ceil(rows * vocabulary / at_once))
    size = max(1, math.ceil(rows / count))
    return (slice(start, start + size) for start in range(0, rows, size))


def _log_softmax(
    hidden_CE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, temperature: float, wide: torch.dtype
) -> Tensor:
    """(C, V) log-probabilities at a temperature."""
    logits_CV = (hidden_CE @ weight_VE.T).to(wide)
    if bias_V is not None:
        logits_CV = logits_CV + bias_V
    return (logits_CV / temperature).log_softmax(1)
