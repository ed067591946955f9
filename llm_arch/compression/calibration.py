"""A model's losses on some rows: what is looked at to decide what it can do without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_arch.types import Backbone, Batch, Head


@dataclass(frozen=True)
class Calibration:
    """A backbone with a head, and labelled rows.

    Attributes:
        backbone: in eval mode.
        head: in eval mode.
        batches: the rows, on the device of both.
    """

    backbone: Backbone
    head: Head
    batches: Sequence[Batch]

    def loss_of(self, batch: Batch) -> Tensor:
        """The sum of a batch's losses."""
        return self.head.loss(self.backbone(batch), batch).sum

    @torch.no_grad()
    def mean_loss(self) -> float:
        """The loss of all rows."""
        losses = [self.head.loss(self.backbone(batch), batch) for batch in self.batches]
        return float(sum(loss.sum for loss in losses)) / float(sum(loss.denominator for loss in losses))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Without gradients of weights, with those of states: for what is derived by states alone."""
        parameters = [p for part in (self.backbone, self.head) for p in part.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
