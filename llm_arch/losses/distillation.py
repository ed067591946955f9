"""Knowledge distillation: the model learns what a larger one says of each row, and how it gets there.

Legend: T tokens, M rows of logits, C classes, D hidden size, L layers of the student, K layers of the teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, layer_norm, log_softmax, mse_loss

from llm_arch.types import Backbone, Batch, Head, Hidden, Loss, LossTerm, UserError


class Distillation(LossTerm):
    """What the model was when the run began is its teacher: for runs that compress a trained model.

    Two means are added to the head's loss: the Kullback–Leibler divergence of the class probabilities from the
    teacher's at a temperature, times its square (Hinton et al. 2015, arXiv 1503.02531); and the mean squared distance
    of the states after each layer from those of the teacher's layer at the same share of its depth, both normalised to
    mean 0 and variance 1 (TinyBERT, Jiao et al. 2020, arXiv 1909.10351).

    Args:
        temperature: what logits are divided by, above 0.
        logits: weight of the first, at least 0.
        states: weight of the second, at least 0; 0 where the student has another width.

    Raises:
        UserError: a number is out of range, or both weights are 0.
    """

    compression = "distillation"
    needs_start = True  # of a run that begins with a trained model, head and all

    def __init__(self, *, temperature: float = 2.0, logits: float = 1.0, states: float = 1.0) -> None:
        if not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        for name, weight in (("logits", logits), ("states", states)):
            if not 0 <= weight < math.inf:
                raise UserError(f"{name} is a weight of at least 0, got {weight}")
        if logits == states == 0:
            raise UserError("the weights of logits and states are both 0, so that nothing is distilled; raise one")
        self.temperature, self.logits, self.states = temperature, logits, states
        self.layers = states > 0
        self.teacher: tuple[Backbone, Head] | None = None

    def begin(self, backbone: Backbone, head: Head) -> None:
        """Keep the model as it is, as the teacher."""
        teacher: Any = copy.deepcopy((backbone, head))
        for part in teacher:
            part.eval().requires_grad_(False)
            for module in part.modules():  # gates, and whatever else follows the training
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
        self.teacher = teacher

    def __call__(self, forward: Callable[[Batch], Hidden], batch: Batch, hidden: Hidden, head: Head) -> Loss:
        """Both means, times the number of rows."""
        assert self.teacher is not None, "begin was not called"
        backbone, teacher_head = self.teacher
        with torch.no_grad():
            taught = backbone.to(batch.starts.device)(batch, all_hidden=self.layers)
            wanted_MC = teacher_head.to(batch.starts.device)(taught, batch) if self.logits else None
        total = hidden.last_TD.new_zeros(())
        if wanted_MC is not None:
            total = total + self.logits * self._of_logits(head(hidden, batch), wanted_MC)
        if self.states:
            assert hidden.layers is not None
            assert taught.layers is not None
            total = total + self.states * _of_states(hidden.layers, taught.layers, batch.valid)
        return Loss(total * batch.rows, float(batch.rows))

    def _of_logits(self, logits_MC: Tensor, wanted_MC: Tensor) -> Tensor:
        if logits_MC.ndim != 2 or logits_MC.shape[1] < 2:
            raise UserError(
                f"logits of shape {tuple(logits_MC.shape)} are no scores of classes; set the weight of logits to 0, so "
                "that states alone are distilled"
            )
        student_MC, teacher_MC = (log_softmax(x.float() / self.temperature, 1) for x in (logits_MC, wanted_MC))
        return kl_div(student_MC, teacher_MC, reduction="batchmean", log_target=True) * self.temperature**2


def _of_states(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], valid_T: Tensor | None) -> Tensor:
    """Mean over the student's layers, embeddings left out."""
    depth, whole = len(student) - 1, len(teacher) - 1
    total = student[0].new_zeros((), dtype=torch.float32)
    for layer in range(1, depth + 1):
        got_TD, wanted_TD = student[layer], teacher[math.ceil(layer * whole / depth)]
        if valid_T is not None:
            got_TD, wanted_TD = got_TD[valid_T], wanted_TD[valid_T]
        got_TD, wanted_TD = (layer_norm(x.float(), x.shape[-1:]) for x in (got_TD, wanted_TD))
        total = total + mse_loss(got_TD, wanted_TD)
    return total / max(depth, 1)
