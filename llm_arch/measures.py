"""What a model is worth on validation and test rows, by its head's own metrics."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import lightning as L
from torchmetrics import MeanMetric, Metric

from llm_arch.types import Backbone, Batch, Head


class Measures(L.LightningModule):
    """A module that counts over all rows, so that no number depends on how they are batched.

    Attributes:
        report: numbers by label, where the metric has them, of the last rows that it was measured on.
    """

    backbone: Backbone
    head: Head
    evaluated: Metric
    evaluated_loss: MeanMetric
    report: dict[str, dict[str, Any]]

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._reset()

    on_test_epoch_start = on_validation_epoch_start

    def _reset(self) -> None:
        self.evaluated.reset()
        self.evaluated_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self._count(batch, final=False)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self._count(batch, final=True)

    def _count(self, batch: Batch, final: bool) -> None:
        loss, counted = self.head.evaluate(self.backbone(batch), batch, final=final)
        self.evaluated.update(*counted)
        self.evaluated_loss.update(loss.mean, loss.denominator)

    def on_validation_epoch_end(self) -> None:
        """Let the head tune its decision, then log `val/loss` and `val/<metric>`."""
        if not self.trainer.sanity_checking:  # a few rows and a model that has learnt nothing
            self.head.calibrate(self.evaluated)
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and `test/<metric>`."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        found = {**self.evaluated.compute(), "loss": self.evaluated_loss.compute()}
        if isinstance(self.evaluated, Reports):
            with self.evaluated.sync_context():
                self.report = self.evaluated.per_label()
        major = self.head.major
        for name, value in found.items():
            self.log(f"{prefix}/{name}", value, prog_bar=prefix == "val" and name == major)


@runtime_checkable
class Reports(Protocol):
    """A metric that can also say how each label did."""

    def per_label(self) -> dict[str, dict[str, Any]]:
        """Numbers by label."""
        ...

    def sync_context(self) -> AbstractContextManager[None]:
        """Gather the counts of all ranks for a while."""
        ...
