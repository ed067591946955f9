"""What a teacher says of a batch, for a student that learns from it.

Legend: T tokens of the batch, M rows of logits, C classes, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from llm_arch.types.batch import Batch
from llm_arch.types.values import Hidden

if TYPE_CHECKING:
    from llm_arch.types.parts import Backbone, Head


@dataclass(frozen=True)
class Asked:
    """What is wanted of a teacher.

    Attributes:
        logits: what its head says.
        layers: its states after these of its layers, counted from 1, rising.
        relations: queries, keys and values of this layer, counted from 1; None for none.
        keep: whether it may look at all rows once, before training, and keep what it says.
    """

    logits: bool = True
    layers: tuple[int, ...] = ()
    relations: int | None = None
    keep: bool = True


@dataclass
class Taught:
    """What a teacher says of a batch: what it computes when it is asked, or has kept from an earlier time.

    Attributes:
        batch: what it has read.
        head: the teacher's head, for heads that need more of it than logits.
        depth: how many layers the teacher has.
        hidden: its states, where it ran on this very batch.
        kept: (M, …) its logits, where they were kept.
        order: where its logits have each of the student's labels; None where the labels stand in the same order.
        states: (T, D) by layer, those that were asked for at least.
        relations: queries, keys and values of the real tokens, where they were asked for.
    """

    batch: Batch
    head: Head
    depth: int
    hidden: Hidden | None = None
    kept: Tensor | None = None
    order: Sequence[int] | None = None
    states: Mapping[int, Tensor] = field(default_factory=dict)
    relations: Sequence[Tensor] | None = None

    @cached_property
    def logits(self) -> Tensor:
        """(M, …) logits, columns in the order of the student's labels; a single one is for the second of two labels."""
        if self.kept is not None:
            return self.kept
        assert self.hidden is not None
        with torch.no_grad():
            found: Tensor = self.head(self.hidden, self.batch)
        if self.order is None:
            return found
        return -found if found.shape[1] == 1 else found[:, torch.tensor(self.order, device=found.device)]


class Teaches(ABC):
    """A teacher: a model that does not change.

    Attributes:
        backbone: frozen, in eval mode.
        head: likewise.
        order: as in `Taught`.
    """

    backbone: Backbone
    head: Head
    order: Sequence[int] | None = None

    @abstractmethod
    def begin(self, backbone: Backbone, head: Head, logits: bool) -> None:
        """Called before training with the student.

        Args:
            backbone: the student's.
            head: the student's.
            logits: whether it shall learn what the teacher's head says, and not from states alone.

        Raises:
            UserError: this teacher can't teach this student.
        """

    def prepare(self, trainer: Any, asked: Asked) -> None:  # noqa: B027 - a hook
        """Called once the data is ready too, before anything is on its device: time to look at all rows once."""

    def __call__(self, batch: Batch, asked: Asked) -> Taught:
        """What it says of a batch."""
        device = batch.starts.device
        self.head.to(device)
        with torch.no_grad():
            hidden: Hidden = self.backbone.to(device)(batch, all_hidden=bool(asked.layers))
        states = dict(enumerate(hidden.layers or ()))
        return Taught(batch, self.head, len(states) - 1, hidden, order=self.order, states=states)


def divergence(student_MC: Tensor, teacher_MC: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence of the softmax over columns from the teacher's, summed over rows, in fp32.

    Both are taken at a temperature; the sum is times its square, so that gradients keep their size (Hinton et al. 2015,
    arXiv 1503.02531).

    Args:
        student_MC: logits.
        teacher_MC: the teacher's.
        temperature: what they are divided by, above 0.
    """
    ours_MC, theirs_MC = (log_softmax(x.float() / temperature, 1) for x in (student_MC, teacher_MC))
    return kl_div(ours_MC, theirs_MC, reduction="sum", log_target=True) * temperature**2
