"""Dropout whose random numbers are cheap, on a CPU and in compiled models.

torch draws one Bernoulli number an element on a CPU, a fifth of a training step on short texts. Here one 64-bit draw
serves four elements: each is kept when its 16 bits stay below a threshold, so a keep probability is a multiple of
2⁻¹⁶ (0.1 becomes 0.100006), and the scale is the inverse of that very number.

A compiled model joins dropout with what stands around it, and is held up by the ten rounds that torch draws each number
in. There the numbers are a hash of the element's place and of two random seeds a call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout as torch_dropout

_STEPS = 2**16
# As signed numbers: 2³² by the golden ratio, and a factor of MurmurHash3's finalizer.
_GOLDEN, _MURMUR = 0x9E3779B9 - 2**32, 0xC2B2AE35 - 2**32
# Zeroing is a bitwise "and" of equally wide integers: a quarter of the time of a product with zeros and ones.
_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def keep_share(dropout: float) -> float:
    """The share of elements that is kept: 1 - dropout, rounded to a multiple of 2⁻¹⁶ but never to 0 or up to 1."""
    if dropout == 0:
        return 1.0
    return min(max(1, round((1 - dropout) * _STEPS)), _STEPS - 1) / _STEPS


def random_mask(shape: torch.Size | tuple[int, ...], keep: float, dtype: torch.dtype) -> Tensor:
    """Random bits for `apply_mask`: all ones where an element is kept, else zeros.

    Args:
        shape: of the elements.
        keep: share that is kept, from `keep_share`, below 1.
        dtype: of the elements.

    Returns:
        Integers as wide as `dtype`, drawn from torch's CPU generator.
    """
    count = math.prod(shape)
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[:count].view(shape)
    return bits.lt_(round(keep * _STEPS) - _STEPS // 2).neg_().to(_BITS[dtype])


def apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """The values where the mask is set, else exact zeros; not scaled."""
    return values.contiguous().view(mask.dtype).bitwise_and(mask).view(values.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropout: float) -> Tensor:
        ctx.keep = keep_share(dropout)
        mask = random_mask(values.shape, ctx.keep, values.dtype)
        ctx.save_for_backward(mask)
        return apply_mask(values, mask).mul_(1 / ctx.keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return apply_mask(gradients[0], mask).mul_(1 / ctx.keep), None


def hashed_mask(shape: torch.Size | tuple[int, ...], drawn: Tensor, probability: float) -> Tensor:
    """Which elements are kept, in operations that a compiler joins with others: splitmix, its factor seeded, too.

    Args:
        shape: of the elements.
        drawn: (2,) in [0, 1), float32; equal ones give equal masks.
        probability: of being dropped, in (0, 1).

    Returns:
        bool.
    """
    seeds = (drawn * 2**24).to(torch.int32) * _GOLDEN  # all 24 bits that float32 has, and the upper ones by them
    places = torch.arange(math.prod(shape), dtype=torch.int32, device=drawn.device).view(shape)
    bits = (places ^ seeds[0]) * _GOLDEN
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * (seeds[1] | 1)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * _MURMUR
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    return bits >= min(round(probability * 2**32), 2**32 - 1) - 2**31


def drop(values: Tensor, probability: float) -> Tensor:
    """The values, each zeroed with this probability in [0, 1] and else scaled, cheaply on a CPU and where compiled."""
    if probability == 0:
        return values
    if torch.compiler.is_compiling() and values.device.type == "cuda" and probability < 1:
        # Not integers: the compiler would draw those anew for every element.
        kept = hashed_mask(values.shape, torch.rand(2, device=values.device), probability)
        return torch.where(kept, values * (1 / (1 - probability)), 0)
    if probability == 1 or values.device.type != "cpu" or values.dtype not in _BITS:
        return torch_dropout(values, probability, True)
    dropped: Tensor = _Dropout.apply(values, probability)
    return dropped


class Dropout(nn.Dropout):
    """`nn.Dropout`, with cheaper random numbers on a CPU and in compiled models on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The values, each zeroed with probability p and else scaled by 1/(1-p), in training."""
        return drop(input, self.p) if self.training else input


def replace_dropout(model: nn.Module) -> None:
    """Put `Dropout` where a model has `nn.Dropout`; subclasses of it are left alone."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                fast = Dropout(child.p)
                fast.training = child.training
                setattr(module, name, fast)
