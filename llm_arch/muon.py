"""Muon for the matrices of hidden layers, and AdamW for everything else, as one optimizer.

Legend: M matrices of one shape, A rows and B columns of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from llm_arch.precision import cpu_has_bf16
from llm_arch.types import UserError

# Jordan et al. (2024): a quintic so steep at zero that five steps lift most singular values to between 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_TINY = 1e-7
# The root mean square of AdamW's usual update (Liu et al. 2025).
_ADAMW_RMS = 0.2


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW (Loshchilov & Hutter 2019) for the rest.

    A hidden matrix moves along its momentum with all singular values brought near 1, times 0.2 · √max(A, B): as far as
    AdamW moves it, so that one learning rate and one weight decay serve both (Liu et al. 2025).

    Hidden are the matrices of the group "decay" that `llm_arch.optim.parameter_groups` makes and `Task` hands over: no
    embeddings, nothing tied to them, nothing of the head. What a model fuses is one matrix: query, key and value of
    GPT-2, the gates of an LSTM. Single rows or columns and whatever has not two dimensions, such as stacked experts, go
    to AdamW. Every process of a distributed run computes all updates.

    Args:
        params: groups with names, as `parameter_groups` makes them.
        lr: learning rate.
        weight_decay: share of a parameter taken off in a step, times lr, where its group does not say otherwise.
        momentum: decay of the running mean of a hidden matrix's gradients.
        nesterov: whether the newest gradient counts once more.
        ns_steps: Newton–Schulz steps that bring the singular values near 1.
        adamw_lr: learning rate of the rest; None for `lr`.
        betas: AdamW's decay of the running mean of gradients and of their squares.
        eps: added to the root in AdamW's denominator.

    Raises:
        UserError: when there is no hidden matrix, or a number is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adamw_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and eps >= 0 and (adamw_lr is None or adamw_lr >= 0)):
            what = f"{lr=}, {weight_decay=}, {adamw_lr=}, {eps=}"
            raise UserError(f"lr, weight_decay, adamw_lr and eps must be at least 0, got {what}")
        if not all(0 <= share < 1 for share in (momentum, *betas)):
            raise UserError(f"momentum and betas must be in [0, 1), got {momentum=}, {betas=}")
        if ns_steps < 1:
            raise UserError(f"ns_steps must be at least 1, got {ns_steps}")
        groups = [
            {"lr": lr if one["name"] == "muon" or adamw_lr is None else adamw_lr, **one} for one in _split(params)
        ]
        # `fused` tells torch's load_state_dict to keep AdamW's step counter as it is.
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(groups, defaults | {"ns_steps": ns_steps, "betas": betas, "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; returns what the closure, which computes loss and gradients again, returned.

        A parameter without gradient (`grad is None`) rests.

        Raises:
            ValueError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            owners = [param for param in group["params"] if param.grad is not None]
            if any(param.grad.is_sparse for param in owners):
                raise ValueError("Muon takes no sparse gradients; make embeddings with sparse=False")
            if group["name"] == "muon":
                for alike in _by_shape(owners):
                    self._muon(group, alike)
            elif owners:
                self._adamw(group, owners)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Move matrices of one shape."""
        grads = [param.grad for param in params if param.grad is not None]
        means = [self._started(param, "momentum_buffer")["momentum_buffer"] for param in params]
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        moves = torch._foreach_lerp(grads, means, group["momentum"]) if group["nesterov"] else means
        moves_MAB = torch.stack(list(moves)).float()
        moves_MAB /= torch.linalg.matrix_norm(moves_MAB, keepdim=True).clamp(min=_TINY)
        moves_MAB = orthogonalise(moves_MAB.to(_product_dtype(moves_MAB.device)), group["ns_steps"]).to(params[0].dtype)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        far = _ADAMW_RMS * math.sqrt(max(params[0].shape))
        torch._foreach_add_(params, list(moves_MAB.unbind()), alpha=-group["lr"] * far)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Move all others."""
        grads = [param.grad for param in params if param.grad is not None]
        states = [self._started(param, "exp_avg", "exp_avg_sq") for param in params]
        for param, state in zip(params, states, strict=True):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        exp_avgs, exp_avg_sqs, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        how: dict[str, Any] = {key: group[key] for key in ("lr", "eps", "weight_decay", "fused")}
        how |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "amsgrad": False, "maximize": False}
        adamw(params, grads, exp_avgs, exp_avg_sqs, [], steps, **how)

    def _started(self, param: Tensor, *names: str) -> dict[str, Any]:
        state = self.state[param]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(param)
        return state


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values near 1 by Newton–Schulz steps, keeping the singular vectors.

    Args:
        matrices: (M, A, B), of spectral norms up to 1; computed in their dtype.
        steps: after five, those that were above 0.01 lie between 0.5 and 1.5.
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    for _ in range(steps):
        gram_MAA = wide @ wide.mT
        factor_MAA = torch.baddbmm(gram_MAA, gram_MAA, gram_MAA, beta=b, alpha=c)
        wide = torch.baddbmm(wide, factor_MAA, wide, beta=a)
    return wide.mT if tall else wide


def _product_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 is exact enough for the steps, but emulated it is slow."""
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def _split(params: ParamsT) -> list[dict[str, Any]]:
    """The groups with their hidden matrices in one of their own, "muon"."""
    groups: list[dict[str, Any]] = []
    for group in params:
        if not isinstance(group, dict) or "name" not in group:
            raise UserError(
                "Muon must know which matrices are hidden: give it llm_arch.optim.parameter_groups(model, …)"
            )
        members = list(group["params"])
        hidden = [group["name"] == "decay" and one.ndim == 2 and min(one.shape) > 1 for one in members]
        for name, wanted in (("muon", True), (group["name"], False)):
            chosen = [one for one, is_hidden in zip(members, hidden, strict=True) if is_hidden == wanted]
            if chosen:
                groups.append({**group, "name": name, "params": chosen})
    if not any(group["name"] == "muon" for group in groups):
        raise UserError(
            "Muon found no hidden matrix to train; where only the head or embeddings learn, take AdamW, the default"
        )
    return groups


def _by_shape(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Matrices of one shape, dtype and device together, to be moved in one go."""
    found: dict[Any, list[Tensor]] = {}
    for param in params:
        found.setdefault((param.shape, param.dtype, param.device), []).append(param)
    return list(found.values())
