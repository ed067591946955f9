"""Least squares after pruning: each output projection learns to give, from what is left, what the dense one gave.

The mask tuning of Kwon et al. (2022, arXiv 2204.09656) with all weights of the projection in place of one factor a
unit. Layer by layer from below, so that each also makes up for what the layers below it have changed. No gradients.

Legend: T tokens, B sequences, L longest sequence, U input columns of a projection, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_arch.compression.anatomy import LayerParts, anatomy
from llm_arch.compression.structure import Structure
from llm_arch.types import UserError

Run = Callable[[], object]  # gives a model some rows


class _Sublayer(NamedTuple):
    """An output projection, and the module whose first argument is added to what it gives."""

    projection: nn.Module
    residual: nn.Module
    plus: nn.Module | None  # another projection whose output is added to that argument


class _Enough(Exception):
    """The layers above need not run."""


@torch.no_grad()
def reconstruct(
    pruned: nn.Module,
    dense: nn.Module,
    keep: Structure,
    runs: Sequence[tuple[Run, Run, Tensor]],
    *,
    damping: float = 0.01,
) -> None:
    """Fit the output projections of a pruned model, in place.

    Args:
        pruned: what `prune` made of a copy of the dense model, in eval mode.
        dense: the model before, in eval mode.
        keep: what is kept of it.
        runs: each gives some sequences to the pruned model, the same to the dense one, and tells their lengths (B,).
        damping: of the change of the weights, relative to the mean square of the inputs; above 0.

    Raises:
        UserError: damping is not above 0.
    """
    if not damping > 0:
        raise UserError(f"damping must be above 0, got {damping}")
    before, after = anatomy(dense), anatomy(pruned)
    changed = False
    for place, layer in enumerate(keep.layers):
        changed = changed or layer != place
        cut = (after[place].heads < before[layer].heads, after[place].neurons < before[layer].neurons)
        for wanted, fitted, smaller in zip(_sublayers(before[layer]), _sublayers(after[place]), cut, strict=True):
            changed = changed or smaller
            if changed and isinstance(getattr(fitted.projection, "weight", None), nn.Parameter):
                _fit(fitted, wanted, runs, damping)


@torch.no_grad()
def take_projections(model: nn.Module, pruned: nn.Module, keep: Structure) -> None:
    """Give a model the output projections of a pruned one, where it has them.

    Args:
        model: dense, or pruned likewise.
        pruned: the pruned one.
        keep: what that kept of the model as it is.
    """
    before, after = anatomy(model), anatomy(pruned)
    for place, layer in enumerate(keep.layers):
        for name, units in (("attention_out", keep.heads[place]), ("ffn_out", keep.neurons[place])):
            to: Any = getattr(before[layer], name)
            given: Any = getattr(after[place], name)
            if not isinstance(getattr(given, "weight", None), nn.Parameter):
                continue
            columns = before[layer].head_columns if name == "attention_out" else 1
            index = (torch.tensor(units)[:, None] * columns + torch.arange(columns)).flatten().to(to.weight.device)
            # transformers' Conv1D has its inputs in the first dimension.
            to.weight.index_copy_(1 if isinstance(to, nn.Linear) else 0, index, given.weight)
            if to.bias is not None:
                to.bias.copy_(given.bias)


def _sublayers(part: LayerParts) -> tuple[_Sublayer, _Sublayer]:
    """Attention, and feed-forward part."""
    attention = _Sublayer(part.attention_out, part.layer, None)
    if hasattr(part.layer, "intermediate"):  # BERT's layers: the norm stands between the two
        return attention, _Sublayer(part.ffn_out, part.layer.intermediate, None)  # type: ignore[arg-type]
    return attention, _Sublayer(part.ffn_out, part.layer, part.attention_out)


def _fit(fitted: _Sublayer, wanted: _Sublayer, runs: Sequence[tuple[Run, Run, Tensor]], damping: float) -> None:
    # Of inputs × inputs and of inputs × what is missing, with a column of ones; rounded to fp32 they would cost digits.
    sums: list[Tensor] = []
    for run, run_dense, lengths_B in runs:
        given_TU, got_TD = _seen(fitted, run, lengths_B)
        missing_TD = _seen(wanted, run_dense, lengths_B)[1] - got_TD
        inputs_TU = torch.cat([given_TU, given_TU.new_ones(len(given_TU), 1)], 1).double()
        new = [inputs_TU.T @ inputs_TU, inputs_TU.T @ missing_TD.double()]
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
    gram_UU, cross_UD = sums
    projection: Any = fitted.projection
    # Where all inputs are zero, weights stay as they are.
    ridge_U = torch.full_like(gram_UU.diagonal(), damping * (float(gram_UU.diagonal()[:-1].mean()) or 1.0))
    ridge_U[-1] = 0.0  # the bias, which is free
    if projection.bias is None:
        gram_UU, cross_UD, ridge_U = gram_UU[:-1, :-1], cross_UD[:-1], ridge_U[:-1]
    change_UD = torch.linalg.solve(gram_UU + ridge_U.diag(), cross_UD).to(projection.weight.dtype)
    if projection.bias is not None:
        change_UD, bias_D = change_UD[:-1], change_UD[-1]
        projection.bias += bias_D
    projection.weight += change_UD.T if isinstance(projection, nn.Linear) else change_UD


def _seen(sublayer: _Sublayer, run: Run, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs (T, U) of its projection, and the states (T, D) after it, before its norm if that comes behind."""
    seen: dict[str, Tensor] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["residual"] = args[0] if args else kwargs["hidden_states"]

    def add(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        seen["residual"] = seen["residual"] + out

    def leave(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        seen["given"], seen["out"] = args[0], out + seen["residual"]
        raise _Enough

    handles = [sublayer.residual.register_forward_pre_hook(enter, with_kwargs=True)]
    if sublayer.plus is not None:
        handles.append(sublayer.plus.register_forward_hook(add))
    handles.append(sublayer.projection.register_forward_hook(leave))
    try:
        run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    given, out = seen["given"], seen["out"]  # (1, T, …), or (B, L, …) with padding
    if len(given) != len(lengths_B):
        return given[0], out[0]
    real_BL = torch.arange(given.shape[1], device=given.device) < lengths_B[:, None]
    return given[real_BL], out[real_BL]
