"""Which parameters decay, how the learning rate moves, AdamW that also takes sparse gradients, scaling and clipping.

Legend: V rows of an embedding, D its width, N rows with a gradient in this step, R rows that ever had one ("active"),
C ≥ R rows of room.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT

from llm_arch.types import UserError

SPARSE_FROM_ROWS = 1000  # below this a dense gradient costs next to nothing


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer's groups, each once: "decay", "no_decay" and "embeddings".

    Biases, normalisation weights and everything with less than two dimensions do not decay. Neither do embeddings
    (nor what is tied to one): a row whose gradient is zero then stays exactly where it is.

    Raises:
        UserError: when weight_decay is negative, or nothing is trainable.
    """
    if not weight_decay >= 0:
        raise UserError(f"weight_decay must be at least 0, got {weight_decay}")
    kinds: dict[Tensor, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                kinds[parameter] = "embeddings"
            elif type(module).__name__.endswith("Norm") or name.endswith("bias") or parameter.ndim < 2:
                kinds.setdefault(parameter, "no_decay")
    members: dict[str, list[Tensor]] = {"decay": [], "no_decay": [], "embeddings": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[kinds.get(parameter, "decay")].append(parameter)
    if not any(members.values()):
        raise UserError("the model has no trainable parameter; unfreeze some of its layers")
    decay = {"decay": weight_decay, "no_decay": 0.0, "embeddings": 0.0}
    return [{"name": kind, "params": params, "weight_decay": decay[kind]} for kind, params in members.items() if params]


class Schedule(ABC):
    """How the learning rate moves over a run."""

    @abstractmethod
    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """A scheduler to be stepped after each of the run's `steps` optimizer steps."""


class _Warmup(Schedule):
    """A linear rise to the optimizer's learning rate, then `after`.

    Args:
        warmup: the rise, as a share of all steps when below 1, else as a number of steps.
        final: the share of the learning rate reached just after the last step.
    """

    def __init__(self, warmup: float = 0.1, final: float = 0.0) -> None:
        if not warmup >= 0 or (warmup >= 1 and not float(warmup).is_integer()):
            raise UserError(f"warmup must be a share in [0, 1) or a whole number of steps, got {warmup}")
        if not 0 <= final <= 1:
            raise UserError(f"final must be in [0, 1], got {final}")
        self.warmup, self.final = warmup, final

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """A scheduler whose saved state is plain numbers."""
        if not 1 <= steps < math.inf:
            raise UserError(f"a schedule needs a number of steps, at least 1, got {steps}")
        return LambdaLR(optimizer, partial(self.factor_at, steps=steps))  # a partial, unlike a lambda, can be pickled

    def factor_at(self, step: int, steps: int) -> float:
        """The share of the learning rate used in a step, counted from 0; positive in all of the `steps`."""
        warmup = int(self.warmup) if self.warmup >= 1 else round(self.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.after(min(1.0, (step - warmup) / max(1, steps - warmup)))

    @abstractmethod
    def after(self, progress: float) -> float:
        """The factor once warm; progress runs from 0 to below 1 over the remaining steps, and is 1 from then on."""


class Linear(_Warmup):
    """A linear rise, then a straight line down to `final`."""

    def after(self, progress: float) -> float:
        """A line from 1 to final."""
        return 1 - (1 - self.final) * progress


class Cosine(_Warmup):
    """A linear rise, then half a cosine down to `final` (Loshchilov & Hutter 2017, one cycle)."""

    def after(self, progress: float) -> float:
        """Half a cosine from 1 to final."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Constant(_Warmup):
    """A linear rise, then the same learning rate to the end.

    Args:
        warmup: the rise, as a share of all steps when below 1, else as a number of steps.
    """

    def __init__(self, warmup: float = 0.1) -> None:
        super().__init__(warmup, final=1.0)

    def after(self, progress: float) -> float:
        """Always 1."""
        return 1.0


class _Workspace(NamedTuple):
    """What a sparse step needs beside the saved state, kept because fresh large tensors cost more than the update."""

    slots_V: Tensor  # where a row stands among the active ones, or -1
    params_CD: Tensor
    grads_CD: Tensor


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019): torch's fused one, which here also takes the sparse gradients of embeddings.

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
    """

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
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
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
        state, grad, work = self._started(param, sparse=True), _row_sums(grad), self._workspace(param)
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


def _row_sums(grad: Tensor) -> Tensor:
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
                parameter.grad = _row_sums(parameter.grad)
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
    if not grads:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if norm.device.type != "cpu" or not factor >= 1:  # a branch would wait for a GPU; NaN multiplies, as in torch
        torch._foreach_mul_(grads, factor)
    return norm


@torch.no_grad()
def clip_values(parameters: Iterable[Tensor], value: float) -> None:
    """Limit every entry of all gradients, dense and sparse, to [-value, value]."""
    if not value > 0:
        raise ValueError(f"value must be above 0, got {value}")
    if grads := _gradients(parameters):
        torch._foreach_clamp_min_(grads, -value)
        torch._foreach_clamp_max_(grads, value)


def make_embeddings_sparse(module: nn.Module) -> list[str]:
    """Let large embeddings give sparse gradients, which this module's AdamW takes; returns the embeddings' names.

    Left as they are: embeddings below 1,000 rows, frozen ones, those whose weight is used twice (tied heads), and those
    with `max_norm` or `scale_grad_by_freq`.
    """
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    names = []
    for name, child in module.named_modules():
        if not isinstance(child, nn.Embedding) or child.max_norm is not None or child.scale_grad_by_freq:
            continue
        if len(child.weight) >= SPARSE_FROM_ROWS and child.weight.requires_grad and uses[id(child.weight)] == 1:
            child.sparse = True
            names.append(name)
    return names
