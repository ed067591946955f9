"""What each head learns from a teacher: against Kullback–Leibler divergences written out row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_arch.data.collate import make_batch
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.heads.regression import Regression
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.task import Task
from llm_arch.types import Batch, Head, Hidden, LabelSpace, Loss, Taught

D, T, HOT = 6, 16, 2.5
TWO, THREE = LabelSpace(("a", "b")), LabelSpace(("O", "B-x", "I-x"))


def batch_of(layout: str = "flat", **labels: Tensor) -> Batch:
    """Three rows, the first of two sequences, with 3, 0 and 2 words."""
    columns: dict[str, Any] = {
        "input_ids": [[1] * 9, [2] * 3, [3] * 4],
        "token_type_ids": [None] * 3,
        "windows": [[5, 4], None, None],
        "index": [20, 21, 25],
        "word_token": [[2, 3, 7], [], [2, 3]],
        "word_start": [[0, 5, 8], [], [1, 4]],
        "word_end": [[4, 7, 12], [], [3, 9]],
    }
    return make_batch(columns, layout, labels)


class Says(torch.nn.Module):
    """Stands for a teacher's head: says the same always."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        return self.logits


def taught(batch: Batch, logits: Tensor, order: Any = None, head: Any = None) -> Taught:
    hidden = Hidden(torch.zeros(len(batch.input_ids), D))
    says: Any = head or Says(logits)
    return Taught(batch, says, 1, hidden, order=order)


def distil(student: Head, batch: Batch, logits: Tensor, **more: Any) -> tuple[Loss, Tensor]:
    """The loss, and the student's own logits."""
    hidden = Hidden(torch.randn(len(batch.input_ids), D, requires_grad=True))
    student.eval()
    loss = student.distil(hidden, batch, taught(batch, logits, **more), HOT)
    loss.sum.backward()
    assert hidden.last_TD.grad is not None
    assert torch.isfinite(hidden.last_TD.grad).all()
    return loss, student(hidden, batch).detach()


def kl(theirs: Tensor, ours: Tensor) -> float:
    """Of softmax at the temperature, for a single row of logits."""
    p, q = ((x.detach().double() / HOT).softmax(0) for x in (theirs, ours))
    return float((p * (p / q).log()).sum()) * HOT**2


def kl_of_yes(theirs: Tensor, ours: Tensor) -> float:
    p, q = (float((x.double() / HOT).sigmoid()) for x in (theirs, ours))
    return (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) * HOT**2


def check(loss: Loss, total: float, denominator: float) -> None:
    assert float(loss.denominator) == denominator
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_classes() -> None:
    wanted = torch.randn(4, 2) * 3
    loss, ours = distil(SequenceClassification(D, TWO), batch_of(), wanted)
    check(loss, sum(map(kl, wanted, ours)), 4.0)


def test_labels_in_another_order() -> None:
    wanted, head = torch.randn(4, 3) * 3, SequenceClassification(D, LabelSpace(("c", "a", "b")))
    order = head.label_space.places_in(LabelSpace(("a", "b", "c")), "the teacher")
    loss, ours = distil(head, batch_of(), wanted, order=order)
    check(loss, sum(map(kl, wanted[:, [2, 0, 1]], ours)), 4.0)


def test_sets_of_labels_and_yes_or_no() -> None:
    wanted = torch.randn(4, 3) * 3
    head = SequenceClassification(D, LabelSpace(("a", "b", "c"), multi=True))
    loss, ours = distil(head, batch_of(), wanted)
    check(loss, sum(kl_of_yes(w, o) for w, o in zip(wanted.flatten(), ours.flatten(), strict=True)) / 3, 4.0)
    wanted = torch.randn(4, 1) * 3
    loss, ours = distil(SequenceClassification(D, TWO, binary=True), batch_of(), wanted)
    check(loss, sum(map(kl_of_yes, wanted, ours)), 4.0)
    loss, ours = distil(SequenceClassification(D, TWO, binary=True), batch_of(), wanted, order=(1, 0))
    check(loss, sum(map(kl_of_yes, -wanted, ours)), 4.0)


@pytest.mark.parametrize("binary", [False, True])
def test_one_logit_learns_from_two_and_two_from_one(binary: bool) -> None:
    wanted = torch.randn(4, 2 if binary else 1) * 3
    loss, ours = distil(SequenceClassification(D, TWO, binary=binary), batch_of(), wanted)
    one_each = [x if x.shape[1] == 1 else x[:, 1:] - x[:, :1] for x in (wanted, ours)]
    check(loss, sum(map(kl_of_yes, *one_each)), 4.0)


def test_words_with_and_without_a_crf() -> None:
    for crf in (False, True):
        wanted = torch.randn(5, 3) * 3
        loss, ours = distil(TokenClassification(D, THREE, crf=crf), batch_of(), wanted)
        check(loss, sum(map(kl, wanted, ours)), 5.0)


def test_relations() -> None:
    columns: dict[str, Any] = {
        "input_ids": [[1] * 6, [2] * 7],
        "token_type_ids": [None] * 2,
        "index": [0, 1],
        "word_token": [[0, 2, 3, 5], [1, 2, 4, 6]],
        "word_start": [[0] * 4] * 2,
        "word_end": [[1] * 4] * 2,
    }
    wanted = torch.randn(2, 2) * 3
    loss, ours = distil(RelationExtraction(D, TWO, pooling="first"), make_batch(columns), wanted)
    check(loss, sum(map(kl, wanted, ours)), 2.0)


def test_numbers_in_the_students_deviations() -> None:
    head = Regression(D, LabelSpace((), moments=(10.0, 4.0)))
    teacher = Regression(D, LabelSpace((), moments=(-2.0, 3.0)))
    wanted = torch.randn(4)
    teacher.forward = lambda hidden, batch: wanted  # type: ignore[method-assign]
    loss, ours = distil(head, batch_of(), wanted, head=teacher)
    check(
        loss,
        sum(((w * 3 - 2) - (o * 4 + 10)) ** 2 / 16 for w, o in zip(wanted.tolist(), ours.tolist(), strict=True)),
        4.0,
    )


def test_choices_of_a_row() -> None:
    wanted = torch.randn(4) * 3
    loss, ours = distil(MultipleChoice(D, LabelSpace(())), batch_of(), wanted)
    check(loss, sum(kl(wanted[part], ours[part]) for part in (slice(0, 2), slice(2, 3), slice(3, 4))), 3.0)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_answers_over_the_context_and_none(layout: str) -> None:
    wanted = torch.randn(5 + 3, 2) * 3
    loss, ours = distil(QuestionAnswering(D, LabelSpace(("start", "end"))), batch_of(layout), wanted)
    rows = ([0, 1, 2, 5], [6], [3, 4, 7])
    check(loss, sum(kl(wanted[row, end], ours[row, end]) for row in rows for end in (0, 1)) / 2, 3.0)


def test_rows_of_logits() -> None:
    batch = batch_of()
    assert TokenClassification(D, THREE).logit_rows(batch).tolist() == [0, 0, 0, 2, 2]
    assert QuestionAnswering(D, LabelSpace(("start", "end"))).logit_rows(batch).tolist() == [0, 0, 0, 2, 2, 0, 1, 2]
    assert MultipleChoice(D, LabelSpace(())).logit_rows(batch).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("kind", ["masked", "causal", "pairs"])
def test_tokens_of_models_of_different_sizes(kind: str) -> None:
    made: dict[str, tuple[str, Any, LabelSpace]] = {
        "masked": ("bert", MaskedLanguageModel, LabelSpace(())),
        "causal": ("gpt2", LanguageModel, LabelSpace(())),
        "pairs": ("bert", BertPretraining, TWO),
    }
    architecture, head, space = made[kind]
    student, teacher = (
        Task(f"{size}:{architecture}", head, space, vocabulary=vocabulary).eval()
        for size, vocabulary in (("mini", 50), ("tiny", 53))
    )
    labels: dict[str, Any] = {"positions": torch.tensor([1, 4, 11]), "targets": torch.tensor([5, 6, 7])}
    batch = batch_of(**labels)
    hidden, theirs = student.backbone(batch), teacher.backbone(batch)
    loss = student.head.distil(hidden, batch, Taught(batch, teacher.head, 1, theirs), HOT)
    assert isinstance(student.head, MaskedLanguageModel | LanguageModel | BertPretraining)
    assert isinstance(teacher.head, MaskedLanguageModel | LanguageModel | BertPretraining)
    ours, wanted = student.head.token_logits(hidden, batch), teacher.head.token_logits(theirs, batch)
    total = sum(map(kl, wanted[:, : ours.shape[1]], ours))
    if kind == "pairs":
        pairs = list(map(kl, teacher.head(theirs, batch), student.head(hidden, batch)))
        total += sum(pairs) / len(pairs) * 3
    check(loss, total, 3.0)
