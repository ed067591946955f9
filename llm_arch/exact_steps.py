"""Steps whose gradient is that of a mean over all that was counted, however it is split."""

from __future__ import annotations

import math

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llm_arch.gradients import clip_gradients, clip_values, gradient_norm, scale_gradients
from llm_arch.types import Loss, UserError


class ExactSteps(L.LightningModule):
    """A module whose losses are sums with a denominator.

    Gradients are scaled once a step by what all micro-batches and ranks counted together, so that accumulation, packing
    and the number of devices do not change them. A step whose loss or gradient is no number changes nothing.

    Attributes:
        gradient_factor: what turned the gradients of the last step's sums into those of the mean, for parameters of
            callbacks.
        left_out: whether the step that has just ended was left out, its loss or gradient being no number; `Guard` says
            so. On a GPU a tensor, where the optimizer can tell without this process waiting for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradient_factor = 1.0
        self.left_out: bool | Tensor = False
        self._denominator: Tensor | float = 0.0
        self._wrong: Tensor | float = 0.0  # above 0 where a loss of this step is no number

    def to_backward(self, loss: Loss) -> Tensor:
        """The loss to go backward: a mean where one micro-batch makes the step, else a sum that is scaled later."""
        self._wrong = self._wrong + (~torch.isfinite(loss.sum.detach())).float()
        if self._engine_steps:
            counted, wrong = self._over_ranks(loss.denominator, self._wrong)
            if wrong > 0:
                raise UserError(
                    f"step {self.trainer.global_step}: the loss is not finite, and DeepSpeed can't leave a step out; "
                    "lower the learning rate, or find the row with -c hardware/ddp, which names it"
                )
            # DeepSpeed divides by the accumulation and by the ranks.
            return loss.sum * (self.trainer.world_size / (float(counted) or 1.0))
        if self._steps_alone:
            return loss.mean
        own = loss.denominator
        self._denominator += own.detach() if isinstance(own, Tensor) else own
        return loss.sum

    @property
    def _steps_alone(self) -> bool:
        return self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1

    @property
    def _engine_steps(self) -> bool:
        """Whether gradients are out of reach, so that losses must be scaled before they go backward."""
        return getattr(self.trainer.strategy, "strategy_name", "") == "deepspeed"

    def _over_ranks(self, *numbers: Tensor | float) -> tuple[Tensor, ...]:
        """Sums over all ranks."""
        exact = torch.float64 if self.device.type == "cpu" else torch.float32
        own = torch.stack([torch.as_tensor(n, dtype=exact).to(self.device) for n in numbers])
        return self.trainer.strategy.reduce(own, reduce_op="sum").unbind()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradient of the sum into that of the mean over everything counted since the last step."""
        if self.trainer.loggers:  # or nobody would see them
            self.log_dict({f"lr-{group.get('name', i)}": group["lr"] for i, group in enumerate(optimizer.param_groups)})
        self.gradient_factor = 1.0
        if self._steps_alone or self._engine_steps:
            return
        counted, self._wrong = self._over_ranks(self._denominator, self._wrong)
        self._denominator = 0.0
        # Lightning has divided by the accumulation, and DDP by the ranks.
        self.gradient_factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / (float(counted) or 1.0)
        scale_gradients(_parameters(optimizer), self.gradient_factor)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip dense and sparse gradients together, and drop them where they, or the loss, are no numbers.

        Without gradients an optimizer changes neither weights nor its own state. One that can leave a step out by
        itself is told to, so that a GPU is never waited for.
        """
        parameters = _parameters(optimizer)
        norm: Tensor | float = 0.0
        if getattr(self.trainer.strategy, "strategy_name", "") in ("fsdp", "deepspeed"):
            if gradient_clip_val:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif not gradient_clip_val:
            norm = gradient_norm(parameters)
        elif gradient_clip_algorithm == "value":
            norm = gradient_norm(parameters)
            clip_values(parameters, float(gradient_clip_val))
        else:
            norm = clip_gradients(parameters, float(gradient_clip_val))
        wrong, self._wrong = self._wrong, 0.0
        if isinstance(norm, Tensor) and can_leave_out(optimizer, norm.device):
            self.left_out = optimizer.found_inf = (~torch.isfinite(norm) | (wrong > 0)).float()  # type: ignore[attr-defined]
            return
        self.left_out = bool(wrong > 0) or not math.isfinite(norm)
        if self.left_out:
            for parameter in parameters:
                parameter.grad = None


def can_leave_out(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether it runs on a GPU and takes a tensor that is 1 where it must change nothing; and nobody looks after it."""
    if device.type != "cuda" or not getattr(optimizer, "leaves_out", False) or optimizer._optimizer_step_post_hooks:
        return False
    return not any(isinstance(parameter, DTensor) for parameter in _parameters(optimizer))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
