"""Pruning in structure that is learnt with the weights: gates of heads, neurons and layers.

CoFi, Xia et al. 2022, arXiv 2204.00408, without its distillation, which is a loss term's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from llm_arch.callbacks.checkpoint import step_has_ended
from llm_arch.callbacks.pruning_in_structure import (
    check_prunable,
    evaluating,
    gate,
    pruning_record,
    run_steps,
    training_rows,
)
from llm_arch.callbacks.pruning_prices import prices_of
from llm_arch.compression.l0 import LearnedGates
from llm_arch.compression.prices import Prices
from llm_arch.compression.structure import Structure
from llm_arch.compression.target import Target
from llm_arch.seeding import mix, run_seed, seed_draws
from llm_arch.types import Batch, UserError

_RATE = 0.5  # of the multipliers, by plain gradient ascent; Adam's steps would carry the size far below the target
_NOISE = 0x6A7E  # tells the draws of gates from those of dropout


class LearnedPruning(L.Callback):
    """Learns which attention heads, neurons and layers of a transformer can go, then takes them out.

    While it learns, each micro-batch runs with gates that are drawn anew, and a penalty with multipliers of its own
    holds what the model is expected to cost to a size, which falls from the whole to the target. Then one threshold on
    all gates leaves the largest model within the target; what is left trains on. The state that is kept as best is one
    after that. A validation before it shows the model with its gates as they would be without chance.

    Args:
        target: how much faster it shall be from text to prediction, on this machine at the lengths of the training
            rows (`4x`), or how many times fewer multiply-accumulates its layers shall need (`2x macs`).
        target_ms: milliseconds a row from text to prediction, in place of `target`.
        start: when gates begin to learn, as a share of the run's steps in [0, 1).
        end: when they are fixed and parts go, after `start`, at most 1; the last step trains what is left.
        warmup: the share of the steps between the two in which the size falls, evenly, in [0, 1].
        learning_rate: of the gates, at least about 10 / the steps in which they learn.
        open: probability at first that a gate is not 0, in (0, 1).
        rows: training rows whose lengths count for what parts cost.
        multiple: neurons of a layer are a multiple of this, or all.

    Raises:
        UserError: an argument is out of range, or there is no target.
    """

    compression = "learned structured pruning"  # how a model's record and card call it

    def __init__(
        self,
        target: str | None = None,
        *,
        target_ms: float | None = None,
        start: float = 0.1,
        end: float = 0.7,
        warmup: float = 0.5,
        learning_rate: float = 0.1,
        open: float = 0.95,
        rows: int = 256,
        multiple: int = 8,
    ) -> None:
        parsed = Target.parse(target, target_ms)
        if parsed is None:
            raise UserError("learned pruning needs a target such as 4x or '2x macs', or target_ms")
        self.target = parsed
        if not 0 <= start < end <= 1:
            raise UserError(f"start and end must be in [0, 1], start before end, got {start} and {end}")
        if not 0 <= warmup <= 1:
            raise UserError(f"warmup must be in [0, 1], got {warmup}")
        if not learning_rate > 0:
            raise UserError(f"learning_rate must be above 0, got {learning_rate}")
        if not 0 < open < 1:
            raise UserError(f"open must be in (0, 1), got {open}")
        for name, number in (("rows", rows), ("multiple", multiple)):
            if number < 1:
                raise UserError(f"{name} must be at least 1, got {number}")
        self.start, self.end, self.warmup = start, end, warmup
        self.learning_rate, self.open = learning_rate, open
        self.rows, self.multiple = rows, multiple
        self.done = False
        self.kept: Structure | None = None  # of the model that the run began with; None before gates learn
        self.learned: LearnedGates | None = None  # None but while gates learn
        self.size = 1.0  # share of the model's cost that the target leaves
        self._prices: Prices | None = None
        self._optimizer: Optimizer | None = None  # of the gates
        self._ascent: Optimizer | None = None  # of the multipliers, without a state
        self._restored: dict[str, Any] = {}  # the optimizer's state
        self._steps = 0
        self._stay = False  # whether gates stay on the model for the whole run
        self._handle: Any = None

    # When

    def steps_of(self, steps: int) -> tuple[int, int]:
        """The first step in which gates learn, and the one before which parts go.

        Args:
            steps: of the whole run.
        """
        return round(self.start * steps), min(round(self.end * steps), steps - 1)

    def size_at(self, step: int) -> float:
        """The share of the model's cost that it is held to in a step of the run, counted from 0."""
        first, last = self.steps_of(self._steps)
        progress = (step + 1 - first) / max(1, round(self.warmup * (last - first)))
        return 1.0 - min(progress, 1.0) * (1.0 - self.size)

    # Hooks

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Gates over several ranks, before anything is restored into them."""
        if stage != "fit":
            return
        backbone: Any = pl_module.backbone
        check_prunable(trainer, backbone)
        pl_module.changing = True
        # One process has gates only while they learn: a checkpoint tells by them which kind it is of.
        self._stay = trainer.world_size > 1 or hasattr(backbone, "gates")
        if self._stay:
            gate(backbone)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Learn how long the run is."""
        self._steps = run_steps(trainer)
        first, last = self.steps_of(self._steps)
        if not self.done and not first < last:
            raise UserError(
                f"learned pruning has no step to learn in: the run has {self._steps}, and gates would learn from step "
                f"{first} to {last}; train longer, or prune with -c compress/retraining_free"
            )
        pl_module.changing = not self.done
        if self.learned is not None:
            self._optimize(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Be there when steps end."""
        (optimizer,) = trainer.optimizers
        # Right after the step, before anything can save the state; before it the gradients are those of the last one.
        self._handle = optimizer.register_step_post_hook(partial(self._step_ended, trainer, pl_module))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Begin, or end, before this step; draw gates for this micro-batch."""
        if self.done:
            return
        if batch_idx % trainer.accumulate_grad_batches == 0:
            first, last = self.steps_of(self._steps)
            if self.learned is None and trainer.global_step >= first:
                if trainer.global_step >= last:
                    raise UserError(
                        f"the run goes on at step {trainer.global_step} without learnt gates, which would have learnt "
                        f"from step {first} to {last}; set a later end, or begin a new run"
                    )
                self._begin(trainer, pl_module)
            if trainer.global_step >= last:
                self._end(trainer, pl_module)
        if self.learned is not None:
            # A pure function of the place, as dropout is, which the task seeds anew after this.
            micro_batch = batch_idx * trainer.world_size + trainer.global_rank
            seed_draws(mix(run_seed(), trainer.current_epoch, micro_batch, _NOISE), pl_module.device)
            _use(pl_module, self.learned)

    def _step_ended(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if self.learned is None:
            return
        assert self._optimizer is not None
        assert self._ascent is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # has unscaled only what the task's optimizer has
        factor = pl_module.gradient_factor / (1.0 if scaler is None else scaler.get_scale())
        gates = _gates(self.learned)
        gradient = torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in gates])
        gradient = trainer.strategy.reduce(gradient, reduce_op="mean") * factor
        if not pl_module.left_out and bool(gradient.isfinite().all()):
            for parameter, part in zip(gates, gradient.split([len(p) for p in gates]), strict=True):
                parameter.grad = part.clone()
            with torch.enable_grad():
                self.learned.penalty(self.size_at(trainer.global_step)).backward()  # counted only after this
            self._optimizer.step()
            self._ascent.step()
        self.learned.zero_grad()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take the drawn gates away, so that nobody else meets them."""
        if self.learned is None:
            return
        pl_module.backbone.gates.set_values()
        if step_has_ended(trainer):
            self.learned.zero_grad()  # of a step that a loss scale left out
            with torch.no_grad():
                pl_module.log("pruning/expected_size", self.learned.expected_size())

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Gates without chance."""
        if self.learned is not None:
            with evaluating(self.learned), torch.no_grad():
                _use(pl_module, self.learned)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take them away."""
        if self.learned is not None:
            pl_module.backbone.gates.set_values()

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say so where the run was over before parts went."""
        self._unhook()
        if not self.done:
            _, last = self.steps_of(self._steps)
            rank_zero_warn(
                f"the run ended after step {trainer.global_step}, before the learnt gates took parts out at step "
                f"{last}; the model is whole. Let it run longer, or set an earlier end"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Look no longer."""
        self._unhook()

    def _unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    # What

    def _begin(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = training_rows(trainer, pl_module, self.rows)
        model: Any = rows.backbone.model
        self.kept = Structure.whole(model)
        with evaluating(pl_module.head):
            prices = prices_of(trainer.datamodule, self.target, rows)  # type: ignore[attr-defined]
        # No two ranks measure the same times.
        self._prices = Prices.from_dict(trainer.strategy.broadcast(prices.to_dict()))
        gate(pl_module.backbone)
        learned = self._make()
        learned.structure(self.size, self.multiple)  # complains now of what can't be reached
        self._optimize(pl_module)
        first, last = self.steps_of(self._steps)
        rank_zero_info(f"learned pruning: gates learn from step {first} to {last}, towards {self.target}")

    def _make(self) -> LearnedGates:
        """New gates by the prices."""
        assert self.kept is not None
        assert self._prices is not None
        of = self.kept.of
        self.learned = LearnedGates(of.heads, of.neurons, self._prices, self.open)
        self.size = self.target.budget(self.learned.whole) / self.learned.whole
        return self.learned

    def _optimize(self, pl_module: Any) -> None:
        assert self.learned is not None
        self.learned.to(pl_module.device)
        self._optimizer = AdamW(_gates(self.learned), lr=self.learning_rate, weight_decay=0.0)
        self._ascent = SGD([self.learned.multipliers], lr=_RATE)
        if self._restored:
            self._optimizer.load_state_dict(self._restored)
        self._restored = {}

    def _end(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert self.learned is not None
        assert self.kept is not None
        backbone: Any = pl_module.backbone
        expected = float(self.learned.expected_size().detach())
        keep = self.learned.structure(self.size, self.multiple)
        keep = Structure.from_dict(trainer.strategy.broadcast(keep.to_dict()))
        self.learned.multiply_into(backbone.model)
        if self._stay:
            backbone.gates.close(keep)
        else:
            backbone.gates.detach()
            del backbone.gates
            backbone.prune(keep, trainer.optimizers[0])
        self.kept = self.kept.then(keep)
        self.done, self.learned, self._optimizer, self._ascent = True, None, None, None
        pl_module.changing = False
        record = pruning_record(self.kept, self.target, self._prices)
        pl_module.records["pruning"] = {"importance": "learned", "expected_size": expected, **record}
        rank_zero_info(
            f"learned pruning: {self.kept.of} -> {self.kept.sizes}; {record['promised']['times']:.2f}x less "
            f"{self.target.unit} for a target of {self.target} ({1 / self.size:.2f}x; gates alone {1 / expected:.2f}x)"
        )

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What has gone, what parts cost, the gates, and their optimizer."""
        learned, optimizer = self.learned, self._optimizer
        return {
            "done": self.done,
            "kept": None if self.kept is None else self.kept.to_dict(),
            "prices": None if self._prices is None else self._prices.to_dict(),
            "gates": None if learned is None else learned.state_dict(),
            "optimizer": self._restored if optimizer is None else optimizer.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.done, self._restored = state_dict["done"], state_dict["optimizer"]
        self.kept = None if state_dict["kept"] is None else Structure.from_dict(state_dict["kept"])
        self._prices = None if state_dict["prices"] is None else Prices.from_dict(state_dict["prices"])
        if state_dict["gates"] is not None:
            self._make().load_state_dict(state_dict["gates"])


def _gates(learned: LearnedGates) -> list[nn.Parameter]:
    """What is learnt of them."""
    return [parameter for parameter in learned.parameters() if parameter is not learned.multipliers]


def _use(pl_module: Any, learned: LearnedGates) -> None:
    """Run the model with these gates: drawn ones in train mode, else fixed ones."""
    heads, neurons, layers = learned.values()
    pl_module.backbone.gates.set_values(heads=heads, neurons=neurons, layers=layers)
