"""Unstructured pruning while training: when weights become zero. Which ones, `llm_arch.compression` says."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from llm_arch.compression.linear_layers import kind_of, matrix
from llm_arch.compression.prunable import prunable_layers
from llm_arch.compression.sparsity import SparsityMethod, check_sparsity
from llm_arch.compression.unstructured_magnitude import MagnitudePruning
from llm_arch.data.sample import sample
from llm_arch.types import Batch, UserError


class UnstructuredPruning(L.Callback):
    """Makes a share of the weights of linear layers zero, more and more of them between two points of the run.

    The share follows the cubic schedule of Zhu & Gupta (2017): fast at first, slow towards the end. Afterwards the
    zeros stay where they are and the other weights train on. Zeros are in the saved weights; nothing else changes
    there. The state that is kept as best is one after the end of the schedule.

    Args:
        method: which weights; None for those of smallest magnitude.
        sparsity: share of the weights to be zero at last, in [0, 1); None with methods that decide it themselves.
        start: when the schedule begins, as a share of the run's steps in [0, 1].
        end: when it ends, not before `start`; 0 for all zeros at once before the first step. A run without steps prunes
            at once too.
        every: steps from one choice of weights to the next while the schedule runs.
        modules: ends of the names of the layers to prune (`query`, `self.query`), with * for any letters; None for
            every linear layer in stacked layers.
        rows: training rows to look at where a method needs the inputs of layers before the first step.

    Raises:
        UserError: an argument is out of range, or does not go with the method.
    """

    def __init__(
        self,
        method: SparsityMethod | None = None,
        sparsity: float | None = None,
        *,
        start: float = 0.1,
        end: float = 0.7,
        every: int = 10,
        modules: list[str] | None = None,
        rows: int = 128,
    ) -> None:
        self.method = MagnitudePruning() if method is None else method
        if not 0 <= start <= end <= 1:
            raise UserError(f"start and end must be in [0, 1], start not after end, got {start} and {end}")
        for name, number in (("every", every), ("rows", rows)):
            if number < 1:
                raise UserError(f"{name} must be at least 1, got {number}")
        if not self.method.takes_sparsity and sparsity is not None:
            raise UserError(f"{self.method.name} pruning decides the sparsity itself, got {sparsity}; leave it out")
        if self.method.takes_sparsity:
            if sparsity is None:
                raise UserError(f"{self.method.name} pruning needs a sparsity, the share of weights that become zero")
            check_sparsity(sparsity)
        if self.method.needs_training and end == 0:
            raise UserError(f"{self.method.name} pruning learns from training which weights go: end must be above 0")
        self.sparsity = self.method.sparsity if sparsity is None else sparsity
        self.start, self.end, self.every = start, end, every
        self.modules, self.rows = modules, rows
        self.compression = f"{self.method.name} pruning"
        self._first = self._last = 0
        self._layers: dict[str, nn.Module] = {}
        self._masks: dict[str, Tensor] = {}
        # Values of pruned weights that can return: zero where a weight stays.
        self._behind: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}  # weights as a step found them, those behind masks included
        self._handle: Any = None

    # When

    def ramp_at(self, step: int) -> float:
        """How far the schedule is after so many steps, in [0, 1]."""
        if step >= self._last:
            return 1.0
        if step <= self._first:
            return 0.0
        return 1.0 - (1.0 - (step - self._first) / (self._last - self._first)) ** 3

    def sparsity_at(self, step: int) -> float:
        """The share of weights that are zero after so many steps."""
        return (self.sparsity or 0.0) * self.ramp_at(step)

    def _chooses_at(self, step: int) -> bool:
        due = self._first < step < self._last and (step - self._first) % self.every == 0
        return due or step == self._last

    # Hooks

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Find the layers, and refuse what can't be pruned."""
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError("unstructured pruning needs whole weights: use one device, or -c hardware/ddp")
        self._layers, tied = prunable_layers(pl_module, pl_module.backbone, self.modules)
        if tied:
            rank_zero_only(print)(f"pruning: {', '.join(tied)} shares its weight with embeddings, and stays whole")
        for name, weight in self._parameters().items():
            if self.method.needs_training and not weight.requires_grad:
                raise UserError(f"{self.method.name} pruning follows gradients, and {name} is frozen; unfreeze it")
        self.method.check(self._weights())
        self._masks, self._behind, self._before = {}, {}, {}
        pl_module.changing = True

    @torch.no_grad()
    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Learn how long the run is; prune before the first step where that is asked for."""
        none = 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches)  # Lightning counts an epoch
        steps = 0 if none else int(trainer.estimated_stepping_batches)
        self._last = min(steps, max(round(self.end * steps), 1 if self.end else 0))
        self._first = min(round(self.start * steps), self._last)
        for kept in (self._masks, self._behind):
            kept.update({name: values.to(pl_module.device) for name, values in kept.items()})
        if self._last == 0 and not self._masks:
            if self.method.needs_training:
                raise UserError(
                    f"{self.method.name} pruning learns from training which weights go; set trainer.max_epochs"
                )
            self._look(trainer, pl_module)
            self._choose(0)
            self._hide(0)
        pl_module.changing = self._last > 0

    def _look(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Show the method some training rows."""
        self.method.watch(self._layers)
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        for batch in sample(trainer.datamodule, self.rows):  # type: ignore[attr-defined]
            batch = batch.to(pl_module.device)
            self.method.see(batch)
            with trainer.precision_plugin.forward_context():
                pl_module.backbone(batch)
            self.method.gather(_itself)  # every rank looks at the same rows
        self.method.unwatch()
        for module, mode in modes.items():
            module.training = mode

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Be there when steps end."""
        (optimizer,) = trainer.optimizers
        # Right after the step, before anything can save the state: its gradients are those of the mean, clipped.
        self._handle = optimizer.register_step_post_hook(partial(self._step_ended, trainer, pl_module))
        pl_module.changing = trainer.global_step < self._last
        if pl_module.changing:
            self.method.watch(self._layers)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Let the method look at this batch, and not at those of validation."""
        self.method.see(batch)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Give weights that can return their values for the step; others take no part in it, nor in clipping."""
        returns = self.method.straight_through and trainer.global_step < self._last
        for name, layer in self._layers.items():
            weight, mask = matrix(layer), self._masks.get(name)
            if mask is not None and mask.shape != weight.shape:
                raise UserError(
                    f"{name} has changed its shape while its weights are pruned; prune in structure in a run of its own"
                )
            if returns:
                if mask is not None and name in self._behind:
                    weight.copy_(torch.where(mask, weight, self._behind[name]))
                self._before[name] = weight.clone()
            elif mask is not None and (gradient := _gradient(layer)) is not None:
                gradient.masked_fill_(~mask, 0.0)

    @torch.no_grad()
    def _step_ended(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer, *_: Any) -> None:
        step = trainer.global_step + 1  # counted only after this
        if self._before:
            self._follow(optimizer, self.ramp_at(step))
        else:
            self._hide(step)
        if step > self._last:
            return
        reduce = partial(trainer.strategy.reduce, reduce_op="sum")
        self.method.gather(reduce if trainer.world_size > 1 else _itself)
        if self._chooses_at(step):
            self._choose(step)
        self._hide(step)
        if step == self._last:
            pl_module.changing = False
            self.method.unwatch()

    def _follow(self, optimizer: Optimizer, ramp: float) -> None:
        """Show the method the step; weights behind masks keep their values."""
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for name, before in self._before.items():
            layer = self._layers[name]
            if (gradient := _gradient(layer)) is not None:  # there is none in a step that is left out
                self.method.follow(name, before, gradient, rates[id(layer.weight)])
            if (mask := self._masks.get(name)) is not None:
                weight = matrix(layer)
                weight.copy_(torch.where(mask, weight, before))
        self._before = {}
        self.method.advance(ramp)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look no longer; hide weights again after a step that a loss scale left out."""
        self.method.see(None)
        if self._before:
            self._before = {}
            self._hide(trainer.global_step)

    # What

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: layer.weight for name, layer in self._layers.items()}  # type: ignore[misc]

    def _weights(self) -> dict[str, Tensor]:
        return {name: matrix(layer) for name, layer in self._layers.items()}

    def _choose(self, step: int) -> None:
        """New masks, from the scores as they are now."""
        self._masks = self.method.masks(self._weights(), self.sparsity_at(step))

    def _hide(self, step: int) -> None:
        """Make the weights zero that the masks say; while the schedule runs, keep those that can return."""
        returns = self.method.straight_through and step < self._last
        self._behind = {}
        for name, mask in self._masks.items():
            weight = matrix(self._layers[name])
            if returns:
                self._behind[name] = weight.masked_fill(mask, 0.0)
            weight.masked_fill_(~mask, 0.0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say what became zero, and what that is good for; record it for the model directory."""
        self._stop()
        zeros, sizes = Counter[str](), Counter[str]()
        for name, weight in self._weights().items():
            zeros[kind_of(name)] += weight.numel() - int(torch.count_nonzero(weight))
            sizes[kind_of(name)] += weight.numel()
        found = zeros.total() / sizes.total()
        pl_module.records["sparsity"] = {
            "method": self.method.name,
            "sparsity": found,
            "weights": sizes.total(),
            "by_layer": {kind: zeros[kind] / size for kind, size in sizes.items()},
        }
        if pl_module.changing:
            rank_zero_warn(
                f"the run ended after step {trainer.global_step}, before its weights were pruned at step {self._last}; "
                f"{found:.1%} of them are zero"
            )
        elif found == 0:
            rank_zero_warn(f"{self.method.name} pruning made no weight zero")
        kinds = ", ".join(f"{kind} {zeros[kind] / size:.1%}" for kind, size in sizes.items())
        rank_zero_only(print)(
            f"{self.compression}: {found:.2%} of {sizes.total():,} weights are zero ({kinds}); {self.method.note}"
        )

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self.method.unwatch()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Look no longer."""
        self._stop()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The masks, what is behind them, and the scores."""
        method = {"name": self.method.name, **self.method.state_dict()}
        return {"masks": self._masks, "behind": self._behind, "method": method}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        method = state_dict["method"]
        if method["name"] != self.method.name or not state_dict["masks"].keys() <= self._layers.keys():
            raise UserError(
                f"the checkpoint is of a run with {method['name']} pruning of {len(state_dict['masks'])} layers, "
                f"here it is {self.method.name} pruning of {len(self._layers)}; resume with the config.yaml of its run"
            )
        self._masks, self._behind = state_dict["masks"], state_dict["behind"]
        self.method.load_state_dict(method)


def _gradient(layer: nn.Module) -> Tensor | None:
    """(O, I), a view."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return None if weight.grad is None else matrix(layer, weight.grad)


def _itself(value: Tensor) -> Tensor:
    return value
