"""What ONNX Runtime's dynamic int8 rounds, rounded in the same way in floating point, with gradients.

A linear layer multiplies whole numbers: its weights are int8, symmetric, with a scale for each output
(`quantize_dynamic(per_channel=True)`), and its inputs uint8 with one scale and one zero point for all inputs of a
sequence, found while it runs (`DynamicQuantizeLinear` of the ONNX specification, given one sequence at a time). An
embedding is uint8 with one scale for the table. Here the same whole numbers are held in floats and multiplied, so that
sums up to 2^24 are exact, and also bf16 loses none of them but in the product. Gradients go straight through the
rounding, and not to what was clipped (Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877).

Legend: O outputs, I inputs, N positions, G groups of positions that share a scale, V rows of a table, D its width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from llm_arch.compression.positions import Positions

_TINY = torch.finfo(torch.float32).tiny


class Steps(NamedTuple):
    """Whole numbers, and what one of them stands for: value = number · scale.

    Attributes:
        numbers: as floats, the zero point taken off.
        scale: above 0, fp32, of a shape that goes with the numbers.
    """

    numbers: Tensor
    scale: Tensor

    @property
    def values(self) -> Tensor:
        """The values that they stand for."""
        return self.numbers * self.scale


def weight_steps(weight_OI: Tensor) -> Steps:
    """Weights as int8: (O, I) numbers in [-127, 127] and (O, 1) scales, an output's largest magnitude over 127.

    Of what they stand for the numbers are the same again.
    """
    weight_OI = weight_OI.float()
    low_O, high_O = torch.aminmax(weight_OI.detach(), dim=1)
    # The scale is found in fp64 and kept in fp32, as there.
    scale_O = torch.maximum(-low_O, high_O).double() / 127
    scale_O = torch.where(scale_O < _TINY, 1.0, scale_O).float()
    return Steps(_Round.apply(weight_OI, scale_O[:, None], None, None), scale_O[:, None])


def input_steps(values_NI: Tensor, low_N: Tensor, high_N: Tensor) -> Steps:
    """Inputs as uint8: (N, I) numbers less the zero point, in [-255, 255], and (N, 1) scales.

    Args:
        values_NI: the inputs.
        low_N: the least input of the position's group, at most 0.
        high_N: the greatest, at least 0.
    """
    scale_N = (high_N - low_N) / 255
    scale_N = torch.where(scale_N == 0, 1.0, scale_N)
    zero_N = (-low_N / scale_N).clamp(0, 255).round()
    numbers_NI = _Round.apply(values_NI.float(), scale_N[:, None], -zero_N[:, None], 255 - zero_N[:, None])
    return Steps(numbers_NI, scale_N[:, None])


@torch.no_grad()
def ranges(values_NI: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """(G,) the least and the greatest value of each group, 0 among them, in fp32; padding does not count."""
    low_N, high_N = torch.aminmax(values_NI.float(), dim=1)
    if positions.real_N is not None:
        low_N, high_N = (bound_N.masked_fill(~positions.real_N, 0.0) for bound_N in (low_N, high_N))
    none_G, group_N = low_N.new_zeros(positions.groups), positions.group_N
    return none_G.scatter_reduce(0, group_N, low_N, "amin"), none_G.scatter_reduce(0, group_N, high_N, "amax")


def int8_linear(inputs: Steps, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """(N, O): a linear layer on whole numbers, as `MatMulInteger` and what follows it do.

    Under autocast the product is of its dtype.

    Args:
        inputs: (N, I), see `input_steps`.
        weight_OI: not rounded yet.
        bias_O: in fp32, or None.
    """
    weights = weight_steps(weight_OI)
    kind = weight_OI.device.type
    # Sums of products of whole numbers go beyond what fp16 can hold.
    wide = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind) and not wide):
        product_NO = linear(inputs.numbers, weights.numbers)
    out_NO = product_NO * (inputs.scale * weights.scale.T)
    return (out_NO if bias_O is None else out_NO + bias_O).to(product_NO.dtype)


def table_values(rows: Tensor, table_VD: Tensor) -> Tensor:
    """Rows of a table, or all of it, with uint8 values of one scale for the table.

    Args:
        rows: (…, D) of the table.
        table_VD: the table, which alone says the scale.
    """
    low, high = (bound.double() for bound in torch.aminmax(table_VD.detach().float()))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    none = scale < _TINY
    scale, low = torch.where(none, 1.0, scale), torch.where(none, 0.0, low)
    zero = (-low / scale).round().float()
    return Steps(_Round.apply(rows.float(), scale.float(), -zero, 255 - zero), scale.float()).values


class _Round(torch.autograd.Function):
    """Values in steps of a scale, to the nearest whole number, ties to the even one, clipped to [low, high]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
        numbers = (values / scale).round_()
        inside = None
        if low is not None and high is not None:
            rounded, numbers = numbers, torch.clamp(numbers, low, high)
            inside = rounded == numbers if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(scale, inside)
        return numbers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scale, inside = ctx.saved_tensors
        gradient = gradients[0] / scale
        return gradient if inside is None else gradient.masked_fill_(~inside, 0.0), None, None, None
