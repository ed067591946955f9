"""Gradients, dense and sparse, scaled and clipped.

Legend: N rows of an embedding that have a gradient in this step, D its width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def sum_rows(grad: Tensor) -> Tensor:
    """A sparse gradient with each row once, summed as the dense gradient is (`coalesce` adds in another order)."""
    assert grad.sparse_dim() == 1, "a sparse gradient of whole rows, as nn.Embedding gives it"
    if grad.is_coalesced():
        return grad
    rows_N, places = grad._indices()[0].unique(return_inverse=True)
    sums_ND = torch.ops.aten.embedding_dense_backward(grad._values(), places, len(rows_N), -1, False)
    return torch.sparse_coo_tensor(rows_N[None], sums_ND, grad.shape, is_coalesced=True, check_invariants=False)


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The numbers of all gradients, to be changed in place: of sparse ones, each row's sum."""
    numbers = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = sum_rows(parameter.grad)
            numbers.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    return numbers


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: float | Tensor) -> None:
    """Multiply all gradients, dense and sparse, by a factor."""
    if grads := _gradients(parameters):
        torch._foreach_mul_(grads, factor)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down so that their common L2 norm is at most max_norm; returns the norm before.

    As `torch.nn.utils.clip_grad_norm_`, which takes no sparse gradients.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    grads = _gradients(parameters)
    norm = _norm(grads)
    if not grads:
        return norm
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if norm.device.type != "cpu" or not factor >= 1:  # a branch would wait for a GPU; NaN multiplies, as in torch
        torch._foreach_mul_(grads, factor)
    return norm


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The common L2 norm of all gradients, dense and sparse; NaN or infinite where one of their numbers is."""
    return _norm(_gradients(parameters))


def _norm(grads: list[Tensor]) -> Tensor:
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))) if grads else torch.zeros(())
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of all shares


@torch.no_grad()
def clip_values(parameters: Iterable[Tensor], value: float) -> None:
    """Limit every entry of all gradients, dense and sparse, to [-value, value]."""
    if not value > 0:
        raise ValueError(f"value must be above 0, got {value}")
    if grads := _gradients(parameters):
        torch._foreach_clamp_min_(grads, -value)
        torch._foreach_clamp_max_(grads, value)
