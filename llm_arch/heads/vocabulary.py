"""Logits over a vocabulary that are never held whole: loss, gradients and scores, a chunk of rows after the other.

torch's own `linear_cross_entropy` does the same, but on a CPU multiplies in fp32 whatever it is given, and knows no
autocast; there it takes several times as long.

Legend: M rows that say something about the vocabulary, C rows of a chunk, K rows of a block of it, V vocabulary,
X ≥ V columns of memory, E embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchmetrics import Metric

# Logits held at a time: so many that adding up the weight's gradient, once a chunk, costs little beside its products.
AT_ONCE, AT_ONCE_ON_GPU = 2**25, 2**27
# Logits of a block on a CPU: what is done to them one after another then happens in the cache.
_IN_CACHE = 2**19
# Products of half precision are slow where rows begin at odd places: a chunk's rows are that much wider than V.
_ALIGNED = 8


def vocabulary_loss(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    targets_M: Tensor,
    at_once: int | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Cross-entropy of the logits hidden · weightᵀ + bias, summed over rows, in fp32.

    The gradients are computed along with it, while a chunk's logits are there (as Hsu et al. 2024 do), so the loss can
    be differentiated once. Under autocast products are of its dtype; softmax, loss and sums over chunks are in fp32.

    Args:
        hidden_ME: states.
        weight_VE: the projection, often the embeddings.
        bias_V: what is added to the logits, or None.
        targets_M: the right token of each row, 0 … V-1.
        at_once: how many logits may be held at a time; None for what suits the device.
        compiled: whether what is done to logits on a GPU goes through `torch.compile`, which makes two passes of it.
    """
    if not torch.is_grad_enabled():
        return vocabulary_scores(hidden_ME, weight_VE, bias_V, targets_M, at_once)[0].sum()
    loss: Tensor = _Loss.apply(hidden_ME, weight_VE, bias_V, targets_M, at_once, compiled)
    return loss


@torch.no_grad()
def vocabulary_scores(
    hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_M: Tensor, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each row's target in nats, (M,) fp32, and whether it is the most probable, (M,).

    Args:
        hidden_ME: states.
        weight_VE: the projection, often the embeddings.
        bias_V: what is added to the logits, or None.
        targets_M: the right token of each row, 0 … V-1.
        at_once: how many logits may be held at a time; None for what suits the device.
    """
    low_ME, low_XE = cast_for_products(hidden_ME, weight_VE, aligned=True)
    V = len(weight_VE)
    nll_M = hidden_ME.new_empty(len(targets_M), dtype=dtype_of_sums(weight_VE))
    right_M = torch.empty_like(targets_M, dtype=torch.bool)
    for chunk, memory_CX in _chunks(low_ME, low_XE, V, at_once):
        for rows, _, wide_KV in _blocks(chunk, memory_CX[:, :V], bias_V, nll_M.dtype):
            right_M[rows] = wide_KV.argmax(1) == targets_M[rows]
            nll_M[rows] = _softmax_(wide_KV, targets_M[rows])
    return nll_M, right_M


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        at_once: int | None,
        compiled: bool,
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        low_ME, low_XE = cast_for_products(hidden_ME, weight_VE, aligned=True)
        V, wide = len(weight_VE), dtype_of_sums(weight_VE)
        loss = hidden_ME.new_zeros((), dtype=wide)
        grad_ME = torch.empty_like(low_ME) if of_hidden else None
        grad_V = hidden_ME.new_zeros(V, dtype=wide) if of_bias else None
        grad_VE: Tensor | None = None
        product_XE: Tensor | None = None
        differentiate = _differentiate_by_blocks_
        if low_ME.device.type != "cpu":
            differentiate = _compiled() if compiled else _differentiate_
        for chunk, memory_CX in _chunks(low_ME, low_XE, V, at_once):
            loss += differentiate(memory_CX, V, bias_V, targets_M[chunk], grad_V, wide)
            if grad_ME is not None:
                torch.mm(memory_CX[:, : len(low_XE)], low_XE, out=grad_ME[chunk])
            if of_weight:
                product_XE = torch.mm(memory_CX.T, low_ME[chunk], out=product_XE)
                grad_VE = product_XE[:V].to(wide, copy=True) if grad_VE is None else grad_VE.add_(product_XE[:V])
        if of_weight and grad_VE is None:  # no rows
            grad_VE = torch.zeros_like(weight_VE)
        pairs = ((grad_ME, hidden_ME), (grad_VE, weight_VE), (grad_V, bias_V))
        ctx.gradients = [None if grad is None or like is None else grad.to(like.dtype) for grad, like in pairs]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss over a vocabulary can be differentiated once; compute it again")
        # In place: nobody else has them, and the weight's is large.
        return (*(None if grad is None else grad.mul_(outer[0]) for grad in gradients), None, None, None)


def _differentiate_by_blocks_(
    memory_CX: Tensor, V: int, bias_V: Tensor | None, targets_C: Tensor, grad_V: Tensor | None, wide: torch.dtype
) -> Tensor:
    """The summed loss of a chunk, whose logits become their gradient: softmax less one at the target."""
    loss = memory_CX.new_zeros((), dtype=wide)
    for rows, logits_KV, wide_KV in _blocks(slice(0, len(memory_CX)), memory_CX[:, :V], bias_V, wide):
        targets_K = targets_C[rows]
        loss += _softmax_(wide_KV, targets_K).sum()
        wide_KV.scatter_add_(1, targets_K[:, None], wide_KV.new_full((1, 1), -1.0).expand(len(targets_K), 1))
        if grad_V is not None:
            grad_V += wide_KV.sum(0)
        logits_KV.copy_(wide_KV)
    return loss


def _differentiate_(
    memory_CX: Tensor, V: int, bias_V: Tensor | None, targets_C: Tensor, grad_V: Tensor | None, wide: torch.dtype
) -> Tensor:
    """The same for a GPU, which has no cache to keep blocks in: in as few passes over memory as torch knows."""
    memory_CX[:, V:] = -math.inf  # no columns of the vocabulary: their probability is 0
    log_CX = torch.log_softmax(memory_CX if bias_V is None else memory_CX + _padded(bias_V, memory_CX), 1, dtype=wide)
    told_C1 = log_CX.gather(1, targets_C[:, None])
    at_targets_C1 = told_C1.expm1()
    if grad_V is None:
        torch.exp(log_CX, out=memory_CX)
    else:
        memory_CX.copy_(log_CX.exp_().scatter_(1, targets_C[:, None], at_targets_C1))
        grad_V += log_CX[:, :V].sum(0)
    memory_CX.scatter_(1, targets_C[:, None], at_targets_C1.to(memory_CX.dtype))
    return -told_C1.sum()


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_differentiate_at_once_, dynamic=True)


def _differentiate_at_once_(
    memory_CX: Tensor, V: int, bias_V: Tensor | None, targets_C: Tensor, grad_V: Tensor | None, wide: torch.dtype
) -> Tensor:
    """The same as `torch.compile` makes one kernel of: nothing is written but the gradient."""
    hit_CX = torch.arange(memory_CX.shape[1], device=memory_CX.device) == targets_C[:, None]
    outside_X = torch.arange(memory_CX.shape[1], device=memory_CX.device) >= V
    wide_CX = memory_CX.to(wide) if bias_V is None else memory_CX.to(wide) + _padded(bias_V, memory_CX)
    # Summed up and not gathered: torch 2.11 compiles a gather so that it reads what is written below.
    target_C = wide_CX.masked_fill(~hit_CX, 0.0).sum(1)
    wide_CX = wide_CX.masked_fill(outside_X, -math.inf)
    norm_C = wide_CX.logsumexp(1)
    log_CX = wide_CX - norm_C[:, None]
    gradient_CX = torch.where(hit_CX, log_CX.expm1(), log_CX.exp())
    if grad_V is not None:
        grad_V += gradient_CX[:, :V].sum(0)
    memory_CX.copy_(gradient_CX)
    return (norm_C - target_C).sum()


def _padded(bias_V: Tensor, memory_CX: Tensor) -> Tensor:
    """(X,) in the dtype of sums."""
    return torch.nn.functional.pad(bias_V.to(dtype_of_sums(bias_V)), (0, memory_CX.shape[1] - len(bias_V)))


def dtype_of_sums(weight_VE: Tensor) -> torch.dtype:
    """The dtype of softmax and sums."""
    return torch.promote_types(weight_VE.dtype, torch.float32)


def cast_for_products(hidden_ME: Tensor, weight_VE: Tensor, *, aligned: bool = False) -> tuple[Tensor, Tensor]:
    """Both in the dtype of the products.

    Args:
        hidden_ME: states.
        weight_VE: the projection.
        aligned: whether the weight's copy, if one is made on a GPU, may get rows of zeros up to a round number:
            products whose sizes are odd take several times as long there.
    """
    kind = hidden_ME.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VE.dtype
    if aligned and kind != "cpu" and low != weight_VE.dtype and len(weight_VE) % _ALIGNED:
        return hidden_ME.to(low), padded_copy(weight_VE, low)
    return hidden_ME.to(low), weight_VE.to(low)


def padded_copy(weight_VE: Tensor, dtype: torch.dtype) -> Tensor:
    """(X, E) in another dtype, zeros below V."""
    weight_XE = weight_VE.new_empty(_round_up(len(weight_VE)), weight_VE.shape[1], dtype=dtype)
    weight_XE[: len(weight_VE)] = weight_VE
    weight_XE[len(weight_VE) :] = 0
    return weight_XE


def _round_up(V: int) -> int:
    return math.ceil(V / _ALIGNED) * _ALIGNED


def _chunks(hidden_ME: Tensor, low_XE: Tensor, V: int, at_once: int | None) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each chunk with memory (C, X) whose first V columns are their logits without bias, others zero."""
    M = len(hidden_ME)
    at_once = at_once or (AT_ONCE if hidden_ME.device.type == "cpu" else AT_ONCE_ON_GPU)
    count = math.ceil(M * V / at_once)
    C = math.ceil(M / count) if count else 0
    memory_CX = hidden_ME.new_zeros(C, _round_up(V))
    for start in range(0, M, max(1, C)):
        chunk = slice(start, min(start + C, M))
        part_CX = memory_CX[: chunk.stop - start]
        torch.mm(hidden_ME[chunk], low_XE.T, out=part_CX[:, : len(low_XE)])
        yield chunk, part_CX


def _blocks(
    chunk: slice, logits_CV: Tensor, bias_V: Tensor | None, wide: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of a chunk, rows by rows: which of all rows these are, their memory, and in memory of its own their logits."""
    C, V = logits_CV.shape
    K = min(C, max(1, _IN_CACHE // V)) if logits_CV.device.type == "cpu" else C
    memory_KV = logits_CV.new_empty(K, V, dtype=wide)
    for start in range(0, C, K):
        logits_KV = logits_CV[start : start + K]
        wide_KV = memory_KV[: len(logits_KV)].copy_(logits_KV)
        if bias_V is not None:
            wide_KV += bias_V
        yield slice(chunk.start + start, chunk.start + start + len(logits_KV)), logits_KV, wide_KV


def _softmax_(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """(K,) negative log-likelihoods; the logits become probabilities."""
    largest_K, target_K = logits_KV.amax(1), logits_KV.gather(1, targets_K[:, None])[:, 0]
    torch.softmax(logits_KV, 1, out=logits_KV)
    # The largest probability is 1 / sum of exp(logit - largest): never so small that the logarithm is lost.
    return largest_K - logits_KV.amax(1).log() - target_K


class LanguageModelMetrics(Metric):
    """Perplexity and accuracy over all tokens that were to be told, and bits per byte of text.

    `perplexity` is exp of the mean negative log-likelihood; `accuracy` the share of tokens that were the most
    probable; `bits_per_byte` the sum of negative log-likelihoods in bits over the bytes of text they stand for, which
    does not depend on the tokenizer, and is left out where the data does not say how many bytes. NaN without tokens.
    """

    full_state_update = False
    nll: Tensor
    right: Tensor
    tokens: Tensor
    text_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "right", "tokens", "text_bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, right: Tensor, text_bytes: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            nll: (M,) negative log-likelihoods in nats.
            right: (M,) whether the most probable token is right.
            text_bytes: (R,) bytes of text that a row's tokens stand for, or None.
        """
        self.nll += nll.double().sum()
        self.right += right.sum()
        self.tokens += len(nll)
        if text_bytes is not None:
            self.text_bytes += text_bytes.sum()

    def compute(self) -> dict[str, Tensor]:
        """`perplexity`, `accuracy` and, where bytes were counted, `bits_per_byte`."""
        found = {"perplexity": (self.nll / self.tokens).exp(), "accuracy": self.right / self.tokens}
        if self.text_bytes > 0:
            found["bits_per_byte"] = self.nll / math.log(2) / self.text_bytes
        return {name: value.float() for name, value in found.items()}
