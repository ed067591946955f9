"""Knowledge distillation: a model learns what a larger one says of each row, and how it gets there.

Legend: T tokens, D hidden size of the student, E hidden size of the teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, mse_loss

from llm_arch.compression.attention_relations import (
    RelationRecorder,
    attending_layer,
    check_heads,
    columns_of,
    relation_divergence,
    with_relations,
)
from llm_arch.types import Asked, Backbone, Batch, Head, Hidden, Loss, LossTerm, Taught, Teaches, UserError

LayerMap = Literal["uniform", "last"] | list[int]


class Distillation(LossTerm, nn.Module):
    """A student also learns from a teacher: another model, or what the model itself was when the run began.

    Means are added to the head's loss. Of logits: how far the student's probabilities are from the teacher's at a
    temperature (Hinton et al. 2015, arXiv 1503.02531), as the head counts them (`Head.distil`). Of states: the mean
    squared distance of the states after each layer from those of a layer of the teacher, both normalised to mean 0 and
    variance 1 (TinyBERT, Jiao et al. 2020, arXiv 1909.10351); where the widths differ, a linear layer that is learnt
    along makes the student's as wide as the teacher's, and is not saved with the model. Of attention relations: how far
    the products of queries, of keys and of values in the student's last layer are from those in a layer of the teacher
    (MiniLMv2, Wang et al. 2021, arXiv 2012.15828), whatever the sizes of the two.

    Args:
        teacher: such as `llm_arch.inference.Teacher`; None for what the model was when the run began.
        temperature: what logits are divided by, above 0.
        logits: weight of logits, at least 0.
        states: weight of states, at least 0.
        layers: from which of the teacher's layers the student's learn: `uniform` from that at the same share of its
            depth, `last` the last one from the last one alone, or the number of one for each, counted from 0.
        relations: weight of attention relations, at least 0.
        relation_layer: the teacher's layer for them, counted from 0; None for its last.
        relation_heads: into how many groups the columns of queries, keys and values are cut before they are multiplied.
        cache: let the teacher look at each row once, before training, and keep what it says on disk for this run and
            later ones.

    Raises:
        UserError: a number is out of range, or all weights are 0.
    """

    compression = "distillation"

    def __init__(
        self,
        *,
        teacher: Teaches | None = None,
        temperature: float = 2.0,
        logits: float = 1.0,
        states: float = 1.0,
        layers: LayerMap = "uniform",
        relations: float = 0.0,
        relation_layer: int | None = None,
        relation_heads: int = 12,
        cache: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        for name, weight in (("logits", logits), ("states", states), ("relations", relations)):
            if not 0 <= weight < math.inf:
                raise UserError(f"{name} is a weight of at least 0, got {weight}")
        if logits == states == relations == 0:
            raise UserError("the weights of logits, states and relations are all 0: nothing is distilled; raise one")
        if relation_heads < 1:
            raise UserError(f"relation_heads must be at least 1, got {relation_heads}")
        if isinstance(layers, list) and (not layers or min(layers) < 0):
            raise UserError(f"layers of the teacher are counted from 0, one for each of the student, got {layers}")
        self.teacher = teacher
        self.temperature, self.logits, self.states = temperature, logits, states
        self.layer_map: LayerMap = layers
        self.layers = states > 0
        self.relations, self.relation_layer, self.relation_heads = relations, relation_layer, relation_heads
        self.cache = cache
        self._recorder: RelationRecorder | None = None
        self.project: nn.Linear | None = None

    @property
    def needs_start(self) -> bool:
        """Whether the run must begin with a trained model, head and all, which is the teacher."""
        return self.teacher is None or isinstance(self.teacher, Itself)

    def learn_from(self, teacher: Teaches) -> None:
        """Take this teacher, unless there is one already."""
        self.teacher = self.teacher or teacher

    def begin(self, backbone: Backbone, head: Head) -> None:
        """Let the teacher look at the student: it may be what the student is now."""
        if self.teacher is None:
            self.teacher = Itself()
        self.teacher.begin(backbone, head, self.logits > 0)
        # Of two stacks the states are the decoder's; they are never kept, and it is known later how many there are.
        self._depth = 0 if backbone.encoder_decoder else len(backbone.layers)
        if self._recorder is not None:
            self._recorder.close()
        self._recorder = RelationRecorder(backbone) if self.relations else None
        if self.relations:
            for whose, model, layer in (
                ("student", backbone, -1),
                ("teacher", self.teacher.backbone, self._relation_layer),
            ):
                check_heads(whose, columns_of(attending_layer(model, layer)), self.relation_heads)
        wide = self.teacher.backbone.hidden_size
        if self.states and backbone.hidden_size != wide and self.project is None:
            self.project = nn.Linear(backbone.hidden_size, wide, bias=False)
            # The same in every run, whatever was drawn before.
            nn.init.orthogonal_(self.project.weight, generator=torch.Generator().manual_seed(0))

    def prepare(self, trainer: Any) -> None:
        """Let the teacher look at the rows."""
        assert self.teacher is not None
        self.teacher.prepare(trainer, self._asked(self._depth))

    def _asked(self, depth: int) -> Asked:
        assert self.teacher is not None
        wanted = self.states > 0 and depth > 0
        pairs = matched(depth, len(self.teacher.backbone.layers), self.layer_map) if wanted else []
        layers = tuple(sorted({theirs for _, theirs in pairs}))
        return Asked(self.logits > 0, layers, self._relation_layer if self.relations else None, self.cache)

    @property
    def _relation_layer(self) -> int:
        """Of the teacher, counted from 1."""
        assert self.teacher is not None
        last = len(self.teacher.backbone.layers)
        return last if self.relation_layer is None else self.relation_layer + 1

    def __call__(self, forward: Callable[[Batch], Hidden], batch: Batch, hidden: Hidden, head: Head) -> Loss:
        """All means, times what the head counts."""
        assert self.teacher is not None, "begin was not called"
        taught = self.teacher(batch, self._asked(len(hidden.layers or ()) - 1))
        loss = Loss(hidden.last_TD.new_zeros(()), float(batch.rows))
        if self.logits:
            found = head.distil(hidden, batch, taught, self.temperature)
            loss = Loss(self.logits * found.sum, found.denominator)
        if self.states:
            assert hidden.layers is not None
            loss = Loss(
                loss.sum + self.states * self._of_states(hidden.layers, taught) * loss.denominator, loss.denominator
            )
        if self._recorder is not None:
            assert taught.relations is not None
            apart = relation_divergence(self._recorder.take(batch), taught.relations, batch, self.relation_heads)
            loss = Loss(loss.sum + self.relations * apart * loss.denominator, loss.denominator)
        return loss

    def _of_states(self, layers: tuple[Tensor, ...], taught: Taught) -> Tensor:
        """Mean over the pairs of layers."""
        pairs = matched(len(layers) - 1, taught.depth, self.layer_map)
        valid_T, total = taught.batch.valid, layers[0].new_zeros((), dtype=torch.float32)
        for ours, theirs in pairs:
            got_TD, wanted_TE = layers[ours], taught.states[theirs]
            if valid_T is not None:
                got_TD, wanted_TE = got_TD[valid_T], wanted_TE[valid_T]
            got_TE = got_TD if self.project is None else self.project(got_TD)
            got_TE, wanted_TE = (layer_norm(x.float(), x.shape[-1:]) for x in (got_TE, wanted_TE))
            total = total + mse_loss(got_TE, wanted_TE)
        return total / max(len(pairs), 1)


class Itself(Teaches):
    """What the student is when the run begins, in memory."""

    def begin(self, backbone: Backbone, head: Head, logits: bool) -> None:
        """Keep the model as it is."""
        kept: Any = copy.deepcopy((backbone, head))
        for part in kept:
            part.eval().requires_grad_(False)
            for module in part.modules():  # gates, and whatever else follows the training
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
        self.backbone, self.head = kept

    def __call__(self, batch: Batch, asked: Asked) -> Taught:
        """What it says of a batch."""
        run = partial(super().__call__, batch, asked)
        taught, relations = with_relations(self.backbone, asked.relations, batch, run)
        return replace(taught, relations=relations)


def matched(depth: int, whole: int, layers: LayerMap) -> list[tuple[int, int]]:
    """Which of the student's layers learns from which of the teacher's, counted from 1.

    Args:
        depth: layers of the student.
        whole: layers of the teacher.
        layers: `uniform`, `last`, or the teacher's layer for each of the student's, counted from 0.

    Raises:
        UserError: a list of another length, or of layers that the teacher lacks.
    """
    if layers == "last":
        return [(depth, whole)] if depth else []
    if layers == "uniform":
        return [(layer, math.ceil(layer * whole / depth)) for layer in range(1, depth + 1)]
    assert isinstance(layers, list)
    if len(layers) != depth or max(layers) >= whole:
        raise UserError(
            f"layers names {layers} of the teacher's {whole} layers for a student of {depth}; "
            f"name one for each of the student's, from 0 to {whole - 1}"
        )
    return [(ours, 1 + theirs) for ours, theirs in enumerate(layers, start=1)]
