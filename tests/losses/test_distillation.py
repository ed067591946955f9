"""Distillation against formulas written out, and in a run that prunes."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from llm_arch import Task, Trainer
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.compression.attention_relations import relation_divergence, with_relations
from llm_arch.data import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.losses.distillation import Distillation, matched
from llm_arch.types import Head, Hidden, Taught, UserError


@pytest.fixture
def made(write_rows, rows, tokenizer):
    L.seed_everything(0, verbose=False)
    data = TextClassificationData(write_rows(rows(24)), tokenizer=tokenizer, max_length=16, batch_size=6)
    task = Task("tiny:bert", SequenceClassification, data.label_space, vocabulary=data.vocabulary)
    return task, data


def batch_of(data):
    return next(iter(data.train_dataloader()))


def of_states(student, teacher, valid=None):
    """The mean of the term, for states (L, T, D) of a student and of a teacher."""
    batch = SimpleNamespace(valid=valid)
    taught = Taught(batch, None, len(teacher) - 1, states=dict(enumerate(teacher)))
    return float(Distillation()._of_states(tuple(student), taught))


def test_formula_of_logits_and_states(made):
    task, data = made
    term = Distillation(temperature=3.0, logits=0.5, states=2.0)
    term.begin(task.backbone, task.head)
    teacher = copy.deepcopy(task).eval()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = batch_of(data)
    task.eval()
    hidden = task.backbone(batch, all_hidden=True)
    loss = term(task.backbone, batch, hidden, task.head)

    taught = teacher.backbone(batch, all_hidden=True)
    p = (teacher.head(taught, batch) / 3).softmax(-1)
    q = (task.head(hidden, batch) / 3).softmax(-1)
    expected = 0.5 * 9 * (p * (p.log() - q.log())).sum(-1).mean()
    for ours, theirs in zip(hidden.layers[1:], taught.layers[1:], strict=True):
        a, b = (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            for x in (ours, theirs)
        )
        expected = expected + 2.0 * (a - b).square().mean() / (len(hidden.layers) - 1)
    torch.testing.assert_close(loss.sum / loss.denominator, expected)
    assert loss.denominator == batch.rows


def test_relations_of_the_last_layer_are_learnt(made, tmp_path):
    task, data = made
    term = Distillation(logits=0.0, states=0.0, relations=2.0, relation_heads=2)
    term.begin(task.backbone, task.head)
    with torch.no_grad():
        for parameter in task.backbone.layers[-1].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = batch_of(data)
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def value():
        return term(task.backbone, batch, task.backbone(batch), task.head).mean

    found = []
    for backbone in (task.backbone, term.teacher.backbone):
        found.append(with_relations(backbone, len(task.backbone.layers), batch, partial(backbone, batch))[1])
    expected = 2 * relation_divergence(*found, batch, 2)
    torch.testing.assert_close(value(), expected)
    optimizer = torch.optim.SGD(task.backbone.parameters(), lr=1.0)
    before = float(value().detach())
    for _ in range(5):
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
    assert float(value().detach()) < before
    with pytest.raises(UserError, match="relation_heads is 12, which does not divide"):
        Distillation(relations=1.0).begin(task.backbone, task.head)


def test_nothing_is_lost_on_oneself_and_the_teacher_stays(made):
    task, data = made
    task.eval()
    term = Distillation()
    term.begin(task.backbone, task.head)
    batch = batch_of(data)
    hidden = task.backbone(batch, all_hidden=True)
    loss = term(task.backbone, batch, hidden, task.head)
    assert float(loss.sum.detach()) == pytest.approx(0.0, abs=1e-6)
    parts = (term.teacher.backbone, term.teacher.head)
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    assert not any(part.training for part in parts)


@pytest.mark.parametrize(("student", "teacher", "pairs"), [(2, 6, {1: 3, 2: 6}), (3, 4, {1: 2, 2: 3, 3: 4})])
def test_layers_are_matched_by_their_depth(student, teacher, pairs):
    assert dict(matched(student, teacher, "uniform")) == pairs
    states = torch.randn(teacher + 1, 5, 8)
    same = tuple([torch.randn(5, 8)] + [states[pairs[layer]] for layer in range(1, student + 1)])
    assert of_states(same, states) == pytest.approx(0.0, abs=1e-6)
    assert of_states(same[::-1], states) > 0.1


def test_chosen_layers():
    assert matched(3, 12, "last") == [(3, 12)]
    assert matched(2, 6, [0, 3]) == [(1, 1), (2, 4)]
    for layers in ([1, 2, 3], [1, 6]):
        with pytest.raises(UserError, match=r"the teacher's 6 layers for a student of 2; name one for each"):
            matched(2, 6, layers)


def test_padding_does_not_count():
    ours, theirs = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    valid = torch.tensor([True, True, False, True])
    expected = of_states(tuple(ours[:, valid]), theirs[:, valid])
    assert of_states(tuple(ours), theirs, valid) == pytest.approx(expected)


def test_prunes_and_learns_from_what_it_was(made, tmp_path):
    task, data = made
    term = Distillation()
    task.loss_terms = [term]
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    pruning = StructuredPruning(neurons=0.25, layers=1, rows=8)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[pruning],
        default_root_dir=str(tmp_path),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        precision="32-true",
    )
    trainer.fit(task, datamodule=data)
    assert len(task.backbone.layers) == 1
    for name, value in term.teacher.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_logits_that_are_no_classes_are_refused(made):
    task, data = made
    term = Distillation(states=0.0)
    term.begin(task.backbone, task.head)
    batch = batch_of(data)

    class One(nn.Module):
        distil = Head.distil

        def forward(self, hidden, batch):
            return hidden.last_TD[:, 0]

    with pytest.raises(UserError, match=r"logits of shape .* set the weight of logits to 0"):
        term(task.backbone, batch, Hidden(task.backbone(batch).last_TD), One())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"logits": -1.0}, "logits is a weight of at least 0, got -1.0"),
        ({"states": math.inf}, "states is a weight of at least 0, got inf"),
        ({"logits": 0.0, "states": 0.0}, "the weights of logits, states and relations are all 0"),
        ({"relations": -0.5}, "relations is a weight of at least 0, got -0.5"),
        ({"relation_heads": 0}, "relation_heads must be at least 1, got 0"),
        ({"layers": []}, "layers of the teacher are counted from 0"),
        ({"layers": [-1, 2]}, r"counted from 0, one for each of the student, got \[-1, 2\]"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(UserError, match=said):
        Distillation(**arguments)
