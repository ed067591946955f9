"""AdamW that also takes the sparse gradients of embeddings.

Legend: V rows of an embedding, D its width, N rows with a gradient in this step, R rows that ever had one ("active"),
C ≥ R rows of room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from llm_arch.gradients import sum_rows
from llm_arch.types import UserError


class _Workspace(NamedTuple):
    """What a sparse step needs beside the saved state, kept because fresh large tensors cost more than the update."""

    slots_V: Tensor  # where a row stands among the active ones, or -1
    params_CD: Tensor
    grads_CD: Tensor


class RowAdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019): torch's fused one, which here also takes the sparse gradients of embeddings.

    The default of `Task` on one CPU process; `--model.optimizer AdamW` is torch's own.

    A sparse gradient (`nn.Embedding(sparse=True)`) gives the update that the same gradient with its zeros written out
    would give (the same bits where D is a multiple of 16), at the cost of the active rows only: a row that never had a
    gradient has no moments and does not move, one that had keeps moving by its momentum. (torch's SparseAdam moves
    only the rows of the step: another method.) As in torch, a parameter without gradient (`grad is None`) rests and
    its step is not counted; a sparse gradient without entries is a gradient of zero, so momentum goes on.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the running mean of gradients and of their squares.
        eps: added to the root in the denominator.
        weight_decay: share of the parameter taken off in a step, times lr; must be 0 for sparse gradients.

    Attributes:
        found_inf: for the next step only: a float32 tensor that is 1 where the step must change neither parameters nor
            state and 0 where it counts, or None. Dense gradients only.
    """

    leaves_out = True
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            what = f"{lr=}, {betas=}, {eps=}, {weight_decay=}"
            raise UserError(f"lr, eps and weight_decay must be at least 0 and betas in [0, 1), got {what}")
        self._workspaces: dict[Tensor, _Workspace] = {}
        # `fused` tells torch's load_state_dict to keep the step counter beside its parameter.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._workspaces = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, bit for bit."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, key in zip(group["params"], saved["params"], strict=True):
                if "rows" in self.state.get(param, ()):  # torch has cast the row numbers to the parameter's dtype
                    self.state[param]["rows"] = state_dict["state"][key]["rows"].to(param.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; returns what the closure, which computes loss and gradients again, returned.

        Raises:
            ValueError: a sparse gradient has weight decay, or comes where gradients were dense before (or vice versa).
        """
        loss = None
        if closure is not None:  # gradients are clipped in it
            with torch.enable_grad():
                loss = closure()
        found_inf, self.found_inf = self.found_inf, None
        for group in self.param_groups:
            owners = [param for param in group["params"] if param.grad is not None]
            if not owners:
                continue
            if group["weight_decay"] != 0 and any(param.grad.is_sparse for param in owners):
                raise ValueError(
                    f"weight_decay={group['weight_decay']} with a sparse gradient: decay would move every row in every "
                    "step; put embeddings into a group with weight_decay 0, as parameter_groups does"
                )
            parts = [(self._sparse if param.grad.is_sparse else self._dense)(param, param.grad) for param in owners]
            params, grads, exp_avgs, exp_avg_sqs, counters = map(list, zip(*parts, strict=True))
            how: dict[str, Any] = {key: group[key] for key in ("lr", "eps", "weight_decay", "fused")}
            how |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "amsgrad": False, "maximize": False}
            how["found_inf"] = found_inf
            adamw(params, grads, exp_avgs, exp_avg_sqs, [], counters, **how)
            for param, updated in zip(owners, params, strict=True):
                if updated is not param:
                    param.index_copy_(0, self.state[param]["rows"], updated)
        return loss

    def _dense(self, param: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Parameter, gradient, both moments and step counter, to be updated in place."""
        state = self._started(param, sparse=False)
        return param, grad, state["exp_avg"], state["exp_avg_sq"], state["step"]

    def _sparse(self, param: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """The same of the active rows only: parameter and gradient are copies, the moments are kept so."""
        state, grad, work = self._started(param, sparse=True), sum_rows(grad), self._workspace(param)
        rows_N = grad.indices()[0]
        new = rows_N[work.slots_V[rows_N] < 0]
        if len(new):
            work.slots_V[new] = torch.arange(len(new), device=param.device) + len(state["rows"])
            state["rows"] = torch.cat([state["rows"], new])
            if len(state["rows"]) > len(state["exp_avg"]):  # room for twice as many: growing stays rare
                room = min(2 * len(state["rows"]), len(param))
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = nn.functional.pad(state[key], (0, 0, 0, room - len(state[key])))
                work = self._workspace(param)
        R = len(state["rows"])
        params_RD, grads_RD = work.params_CD[:R], work.grads_CD[:R]
        torch.index_select(param, 0, state["rows"], out=params_RD)
        grads_RD.zero_().index_copy_(0, work.slots_V[rows_N], grad.values())
        return params_RD, grads_RD, state["exp_avg"][:R], state["exp_avg_sq"][:R], state["step"]

    def _started(self, param: Tensor, *, sparse: bool) -> dict[str, Any]:
        """The parameter's state; sparse: of its active `rows` (R,), the moments (C, D)."""
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = param.new_zeros(0, param.shape[1]) if sparse else torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            if sparse:
                state["rows"] = torch.zeros(0, dtype=torch.long, device=param.device)
        if sparse != ("rows" in state):
            was, now = ("dense", "sparse") if sparse else ("sparse", "dense")
            raise ValueError(
                f"the gradient of a parameter of shape {tuple(param.shape)} was {was} and is now {now}; "
                "an embedding can be sparse only if nothing but its own lookup uses its weight"
            )
        return state

    def _workspace(self, param: Tensor) -> _Workspace:
        """The parameter's workspace, made again when room or device have changed."""
        state, work = self.state[param], self._workspaces.get(param)
        if work is None or work.grads_CD.shape != state["exp_avg"].shape or work.grads_CD.device != param.device:
            slots_V = torch.full((len(param),), -1, device=param.device)
            slots_V[state["rows"]] = torch.arange(len(state["rows"]), device=param.device)
            work = _Workspace(slots_V, torch.empty_like(state["exp_avg"]), torch.empty_like(state["exp_avg"]))
            self._workspaces[param] = work
        return work
