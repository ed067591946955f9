"""Every check passes on sound parts, and a part that is broken in one way makes the check of that way fail."""

import random

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from llm_arch.data.classification import TextClassificationData
from llm_arch.evaluation.verification.base import Check, at_least, at_most
from llm_arch.evaluation.verification.layouts import Layouts
from llm_arch.evaluation.verification.subject import ROWS, TOKENS, Subject
from llm_arch.evaluation.verify import checks, verify
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.metrics import ClassificationMetrics
from llm_arch.task import Task
from llm_arch.types import Loss

ACCUMULATION, DUPLICATES, INPUTS = "one batch = accumulated", "no duplicates", "output changes"
ISOLATION, LABELS, LAYOUTS, METRICS = "no attention across", "labels round-trip", "flat = padded", "metrics"
OVERFITTING, PROCESSES, REPETITION, RESUMING = "overfits", "2 processes", "a seed repeats", "interrupted run"
ALL = [ACCUMULATION, DUPLICATES, INPUTS, ISOLATION, LABELS, LAYOUTS]
ALL += [METRICS, OVERFITTING, PROCESSES, REPETITION, RESUMING]


@pytest.fixture
def subject(rows, write_rows, tokenizer, tmp_path):
    train, other = write_rows(rows(60), "train.jsonl"), write_rows(rows(20, seed=1), "validation.jsonl")

    def make(head=SequenceClassification, data=TextClassificationData, validation=other, **options):
        def build():
            module = data(train, validation, tokenizer=tokenizer)
            return Task("tiny:bert", head, module.label_space), module

        return Subject(build, tmp_path, **options)

    return make


def outcomes(subject):
    found = list(verify(subject))
    assert [name for name, one in zip(ALL, found, strict=True) if name not in one.check] == []
    return dict(zip(ALL, found, strict=True))


def outcome(name, subject):
    """That of one check; those after it are not made."""
    return next(one for one in verify(subject) if name in one.check)


def failing(found):
    return {name for name, one in found.items() if one.status == "fail"}


def test_all_checks_are_found():
    assert len(checks()) == len(ALL)
    assert len({type(check).__module__ for check in checks()}) == len(ALL)  # one a file


@pytest.mark.parametrize("accumulation", [1, 2])
def test_sound_parts_pass(accumulation, subject, tmp_path):
    found = outcomes(subject(accumulation=accumulation))
    assert {name: one.status for name, one in found.items() if one.status != "pass"} == {PROCESSES: "skip"}
    assert all(one.measured is not None and one.bound for name, one in found.items() if name != PROCESSES)
    assert found[ACCUMULATION].measured < 1e-6
    assert found[RESUMING].measured == found[REPETITION].measured == 0
    # The folder is that of the caller.
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "validation.jsonl", "interrupted.ckpt"}


# Broken heads


class CountsPadding(SequenceClassification):
    """Weighs its loss by the cells of the batch, padding among them."""

    def loss(self, hidden, batch):
        loss = super().loss(hidden, batch)
        return Loss(loss.sum * (len(batch.input_ids) / batch.lengths.sum()), loss.denominator)


class MeanOfBatch(SequenceClassification):
    """Gives the mean over the batch for a sum."""

    def loss(self, hidden, batch):
        return Loss(super().loss(hidden, batch).mean, 1.0)


class Unseeded(SequenceClassification):
    """Draws numbers that no seed of the run reaches, in training."""

    def loss(self, hidden, batch):
        loss = super().loss(hidden, batch)
        return loss._replace(sum=loss.sum * random.SystemRandom().uniform(0.5, 1.5)) if self.training else loss


class Stuck(SequenceClassification):
    """Hands no gradient on."""

    def loss(self, hidden, batch):
        loss = super().loss(hidden, batch)
        return loss._replace(sum=loss.sum * 0 + loss.sum.detach())


class Deaf(SequenceClassification):
    """Says the same of everything."""

    def forward(self, hidden, batch):
        return self.classify.bias.expand(batch.size, -1) + hidden.last_TD.sum() * 0


class MeanOfBatches(ClassificationMetrics):
    """Adds up over batches what it should add up over rows."""

    def __init__(self, label_space):
        super().__init__(label_space)
        self.batches = 0

    def update(self, predicted, truth):
        super().update(predicted, truth)
        self.batches += 1

    def compute(self):
        return {"accuracy": super().compute()["accuracy"], "errors": torch.tensor(1.0 / self.batches)}


class BadMetric(SequenceClassification):
    def metrics(self):
        return MeanOfBatches(self.label_space)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (CountsPadding, {LAYOUTS}),
        (MeanOfBatch, {ACCUMULATION}),
        (Unseeded, {REPETITION, RESUMING}),
        (Stuck, {OVERFITTING}),
        (Deaf, {INPUTS, OVERFITTING}),
        (BadMetric, {METRICS}),
    ],
)
def test_broken_heads(head, expected, subject):
    assert failing(outcomes(subject(head))) == expected


class Raises(Check):
    promise = "is never kept"

    def run(self, subject):
        raise RuntimeError("not  today\nat all")


def test_an_error_is_a_failure_told_with_its_place(subject, monkeypatch):
    monkeypatch.setattr("llm_arch.evaluation.verify.checks", lambda: [Raises(), Layouts()])
    first, second = verify(subject())
    assert (first.status, first.check, first.measured) == ("fail", "is never kept", None)
    assert "raised RuntimeError: not today at all (test_verify.py, line" in first.reason
    assert second.status == "pass"


# Broken data


class WrongLabels(TextClassificationData):
    """Every label is the next one."""

    def label_tensors(self, columns):
        return {"label": (super().label_tensors(columns)["label"] + 1) % len(self.label_space)}


class LosesRow(TextClassificationData):
    """Loses the last row of a batch of several."""

    def collate(self, columns, labelled=True):
        count = max(1, len(columns["index"]) - 1)
        cut = {name: v[:count] if isinstance(v, list) else v for name, v in columns.items()}
        return super().collate(cut, labelled)


class MixesRows(TextClassificationData):
    """The third token of each row is that of the row before it."""

    def collate(self, columns, labelled=True):
        batch = super().collate(columns, labelled)
        third = batch.starts + 2
        batch.input_ids[third] = batch.input_ids[third].roll(1)
        return batch


@pytest.mark.parametrize(
    ("data", "expected"),
    [(WrongLabels, {LABELS}), (LosesRow, {ACCUMULATION, LABELS}), (MixesRows, {ACCUMULATION, ISOLATION, METRICS})],
)
def test_broken_collators(data, expected, subject):
    found = failing(outcomes(subject(data=data)))
    assert found >= expected
    assert found <= {*expected, METRICS, ISOLATION}


def test_broken_labels_are_named(subject):
    found = outcome(LABELS, subject(data=WrongLabels))
    assert found.measured == 0
    assert "train.jsonl, line 1: {'off'} was given, {'on'} read back" in found.reason


# Rows in two splits


def test_duplicate_between_splits(subject, rows, write_rows):
    both = [*rows(20, seed=1), rows(60)[7]]
    found = outcomes(subject(validation=write_rows(both, "leaking.jsonl")))
    assert failing(found) == {DUPLICATES}
    assert found[DUPLICATES].measured == 1
    assert "validation line 21" in found[DUPLICATES].reason
    assert found[DUPLICATES].reason.endswith("= train line 8")


@pytest.mark.parametrize(("allowed", "status"), [(1.0, "warn"), (0.05, "warn"), (0.04, "fail")])
def test_near_duplicates(allowed, status, subject, rows, write_rows):
    twin = rows(60)[7]
    near = [*rows(20, seed=1), twin | {"text": twin["text"].upper() + "!"}]
    made = subject(validation=write_rows(near, "near.jsonl"), max_near_duplicates=allowed)
    found = outcome(DUPLICATES, made)
    assert found.status == status
    assert found.measured == pytest.approx(1 / 21)
    assert "nearest (1.00): validation line 21" in found.reason
    assert "train line 8" in found.reason


# The subject


def test_rows_are_few_and_short_together(subject):
    made = subject()
    lengths = made.data.split("train").lengths
    assert len(set(made.rows())) == ROWS
    assert lengths[made.rows()].sum() <= TOKENS
    assert made.rows() == subject().rows()
    assert len(set(made.rows(1000))) == 60
    assert made.part([5, 3]).split("train").column("line") == [4, 6]


def test_callbacks_of_the_run_take_part(subject):
    class Forgets(Callback):
        """Changes weights by a state that it doesn't save."""

        def __init__(self):
            self.steps = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.steps += 1
            with torch.no_grad():
                pl_module.head.classify.bias += self.steps

    assert failing(outcomes(subject(callbacks=[Forgets()]))) == {RESUMING}


def test_bounds():
    assert at_most(1.0, 1.0, "").status == at_least(1.0, 1.0, "").status == "pass"
    assert at_most(1.1, 1.0, "").status == at_least(0.9, 1.0, "").status == "fail"
    assert at_most(float("nan"), 1.0, "").status == at_least(float("nan"), 1.0, "").status == "fail"
