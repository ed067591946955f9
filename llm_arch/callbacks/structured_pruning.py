"""Pruning in structure while training: attention heads, neurons and whole layers go at chosen steps."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from llm_arch.callbacks.pruning_in_structure import (
    check_prunable,
    evaluating,
    gate,
    pruning_record,
    run_steps,
    training_rows,
)
from llm_arch.callbacks.pruning_prices import prices_of
from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.calibration import Calibration
from llm_arch.compression.fisher import Fisher
from llm_arch.compression.gates import Gates
from llm_arch.compression.importance import Importance, Scores
from llm_arch.compression.planning import Shares, most_important
from llm_arch.compression.prices import Prices, Sizes
from llm_arch.compression.reconstruction import reconstruct, take_projections
from llm_arch.compression.sensitivity import added_up, measured
from llm_arch.compression.solver import Losses, solve
from llm_arch.compression.structure import Structure
from llm_arch.compression.target import Target
from llm_arch.types import Batch, UserError


class StructuredPruning(L.Callback):
    """Takes attention heads, neurons and layers out of a transformer, in one go or little by little.

    On one device they are taken out of the running model, which trains faster at once; over several ranks gates close
    before them, which gives the same numbers but for dropout's, and they are taken out in the end. What has gone never
    comes back, and each time counts from the model that the run began with, so that nothing compounds. The state that
    is kept as best is one after the last time.

    Args:
        target: how much faster it shall be from text to prediction, on this machine at the lengths of the training
            rows (`4x`), or how many times fewer multiply-accumulates its layers shall need (`2x macs`). Which parts go
            is what costs the least loss.
        target_ms: milliseconds a row from text to prediction, in place of `target`.
        heads: without a target: share of the heads of each layer to keep, in [0, 1].
        neurons: without a target: share of the neurons of each layer to keep, in [0, 1].
        layers: without a target: how many layers to keep, or which of them, counted from 0; None for all. They go with
            the last time.
        importance: which heads and neurons go first; None for `compression.fisher.Fisher`.
        losses: for a target: whether the loss that a part is worth is added up from the importance of its units, or
            measured on the rows without it, which takes minutes.
        rows: training rows to look at each time.
        reconstruct: fit the output projections to the states of the model before, by least squares.
        multiple: neurons of a layer are a multiple of this.
        start: when pruning begins, as a share of the run's steps in [0, 1]; at 0 before the first.
        end: when it ends, not before `start`.
        times: how often parts are taken out between the two; most go first (the cubic schedule of Zhu & Gupta 2017).

    Raises:
        UserError: an argument is out of range, or there is neither a target nor a share.
    """

    compression = "structured pruning"  # how a model's record and card call it

    def __init__(
        self,
        target: str | None = None,
        *,
        target_ms: float | None = None,
        heads: float | None = None,
        neurons: float | None = None,
        layers: int | list[int] | None = None,
        importance: Importance | None = None,
        losses: Literal["importance", "measured"] = "importance",
        rows: int = 256,
        reconstruct: bool = True,
        multiple: int = 8,
        start: float = 0.0,
        end: float = 0.0,
        times: int = 1,
    ) -> None:
        self.target = Target.parse(target, target_ms)
        given = {"heads": heads, "neurons": neurons, "layers": layers}
        given = {name: value for name, value in given.items() if value is not None}
        if self.target is None and not given:
            raise UserError("structured pruning needs a target such as 4x, or what to keep: heads, neurons or layers")
        if self.target is not None and given:
            raise UserError(f"give a target or {next(iter(given))}, not both: a target decides itself what to keep")
        self.shares = Shares(**given)  # type: ignore[arg-type]
        if losses not in ("measured", "importance"):
            raise UserError(f"losses must be measured or importance, got {losses!r}")
        for name, number in (("rows", rows), ("multiple", multiple), ("times", times)):
            if number < 1:
                raise UserError(f"{name} must be at least 1, got {number}")
        if not 0 <= start <= end <= 1:
            raise UserError(f"start and end must be in [0, 1], start not after end, got {start} and {end}")
        if times > 1 and start == end:
            raise UserError(f"pruning {times} times needs an end after its start, got {start} for both")
        self.importance = Fisher() if importance is None else importance
        self.losses = losses
        self.rows, self.multiple = rows, multiple
        self.reconstruct = reconstruct
        self.start, self.end, self.times = start, end, times
        self.done = 0
        self.kept: Structure | None = None  # of the model that the run began with
        self.prices: Prices | None = None

    # When

    def step_of(self, time: int, steps: int) -> int:
        """The step before which parts go for the nth time.

        Args:
            time: n, counted from 0.
            steps: of the whole run.
        """
        share = 0.0 if self.times == 1 else time / (self.times - 1)
        return min(round((self.start + share * (self.end - self.start)) * steps), max(steps - 1, 0))

    def progress_at(self, time: int) -> float:
        """How much of all that shall go is gone after the nth time, from 0: in (0, 1], by the cubic schedule."""
        return 1.0 - (1.0 - (time + 1) / self.times) ** 3

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Gates over several ranks, before anything is restored into them."""
        if stage != "fit":
            return
        backbone: Any = pl_module.backbone
        check_prunable(trainer, backbone)
        pl_module.changing = True
        if trainer.world_size > 1:
            gate(backbone)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """All that goes, where the run has no steps."""
        while self.done < self.times and run_steps(trainer) == 0:
            self._next(trainer, pl_module)
        pl_module.changing = self.done < self.times

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """What goes before this step."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        while self.done < self.times and trainer.global_step >= self.step_of(self.done, run_steps(trainer)):
            self._next(trainer, pl_module)
        pl_module.changing = self.done < self.times

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say so where the run was over before pruning was."""
        if self.done < self.times:
            rank_zero_warn(
                f"the run ended after step {trainer.global_step} with pruning done {self.done} of {self.times} times; "
                "let it run longer, or set an earlier end"
            )

    # What

    def _next(self, trainer: L.Trainer, pl_module: Any) -> None:
        rank_zero_info(f"pruning {self.done + 1} of {self.times}: looking at {self.rows} training rows")
        rows = training_rows(trainer, pl_module, self.rows)
        model: Any = rows.backbone.model
        if self.kept is None:
            self.kept = Structure.whole(model)
        with evaluating(pl_module.head):
            with rows.frozen():
                scores = self.importance(anatomy(model), rows.loss_of, rows.batches)
            sizes = self._sizes(trainer, pl_module, rows, scores)
        keep = most_important(scores, sizes, self.kept.sizes)
        keep = Structure.from_dict(trainer.strategy.broadcast(keep.to_dict()))
        if not keep.is_whole:
            self._apply(trainer, rows, keep, pl_module.backbone)
        self.kept = self.kept.then(keep)
        self.done += 1
        self._report(pl_module)

    def _sizes(self, trainer: L.Trainer, pl_module: Any, rows: Calibration, scores: Scores) -> Sizes:
        """How many heads and neurons each layer of the model keeps."""
        assert self.kept is not None
        progress = self.progress_at(self.done)
        if self.target is None:
            return self.shares.sizes(scores, self.kept, self.multiple, progress)
        if self.prices is None:
            prices = prices_of(trainer.datamodule, self.target, rows)  # type: ignore[attr-defined]
            # No two ranks measure the same times.
            self.prices = Prices.from_dict(trainer.strategy.broadcast(prices.to_dict()))
        whole = self.prices.total(list(zip(self.kept.of.heads, self.kept.of.neurons, strict=True)))
        budget = whole - progress * (whole - self.target.budget(whole))
        losses = self._losses(rows, scores)
        if self.done == 0:  # says how far one can get at once, and not only when it comes to that
            solve(losses, self.prices, self.target.budget(whole), multiple=self.multiple)
        return solve(losses, self.prices, budget, multiple=self.multiple)

    def _losses(self, rows: Calibration, scores: Scores) -> Losses:
        if self.losses == "importance":
            return added_up(scores)
        model: Any = rows.backbone.model
        gates = Gates(model).to(rows.batches[0].starts.device)
        gates.attach(model)
        try:
            return measured(gates, scores, rows.mean_loss)
        finally:
            gates.detach()

    def _apply(self, trainer: L.Trainer, rows: Calibration, keep: Structure, backbone: Any) -> None:
        dense: Any = rows.backbone
        pruned = None
        if self.reconstruct:
            pruned = copy.deepcopy(dense)
            pruned.prune(keep)
            runs = [(partial(pruned, batch), partial(dense, batch), batch.lengths) for batch in rows.batches]
            reconstruct(pruned.model, dense.model, keep, runs)
        gates = getattr(backbone, "gates", None)
        if gates is None:
            backbone.prune(keep, trainer.optimizers[0] if trainer.optimizers else None)
            places = Structure.whole(backbone.model)
        else:
            places = gates.structure(Structure.whole(backbone.model)).then(keep)
            gates.close(places)
        if pruned is not None:
            take_projections(backbone.model, pruned.model, places)

    def _report(self, pl_module: Any) -> None:
        assert self.kept is not None
        rank_zero_info(f"pruning {self.done} of {self.times}: {self.kept.of} -> {self.kept.sizes}")
        pl_module.records["pruning"] = {
            "importance": type(self.importance).__name__.lower(),
            **pruning_record(self.kept, self.target, self.prices),
        }

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What has gone, and what parts cost."""
        kept, prices = self.kept, self.prices
        return {
            "done": self.done,
            "kept": None if kept is None else kept.to_dict(),
            "prices": None if prices is None else prices.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.done = state_dict["done"]
        self.kept = None if state_dict["kept"] is None else Structure.from_dict(state_dict["kept"])
        self.prices = None if state_dict["prices"] is None else Prices.from_dict(state_dict["prices"])
