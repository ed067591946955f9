"""Classification metrics against scikit-learn, whatever the batches."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support
from torch import Tensor

from llm_arch.heads.metrics import ClassificationMetrics
from llm_arch.types import LabelSpace


def space(classes: int, multi: bool = False) -> LabelSpace:
    return LabelSpace(tuple(f"label {i}" for i in range(classes)), None, multi)


def measure(predicted: Tensor, truth: Tensor, cuts: list[int], labels: LabelSpace) -> ClassificationMetrics:
    """Fed in the given pieces."""
    metric = ClassificationMetrics(labels)
    for one, other in zip(predicted.tensor_split(cuts), truth.tensor_split(cuts), strict=True):
        if len(one):
            metric.update(one, other)
    return metric


def numbers(metric: ClassificationMetrics) -> dict[str, float]:
    return {k: float(v) for k, v in metric.compute().items()}


def check_per_label(metric: ClassificationMetrics, predicted: Any, truth: Any, classes: int) -> None:
    expected = precision_recall_fscore_support(
        truth, predicted, labels=list(range(classes)), average=None, zero_division=0
    )
    found = metric.per_label()
    assert list(found) == [f"label {i}" for i in range(classes)]
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([found[f"label {i}"][name] for i in range(classes)], values, atol=1e-9)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Classes, rows, seed and where the rows are cut."""
    classes, rows = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    return classes, rows, draw(st.integers(0, 2**31)), sorted(draw(st.lists(st.integers(0, rows), max_size=4)))


@settings(max_examples=110, deadline=None)
@given(case=cases(), skill=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_one_label_a_row(case: tuple[int, int, int, list[int]], skill: float) -> None:
    classes, rows, seed, cuts = case
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows,), generator=generator)
    guess = torch.randint(classes, (rows,), generator=generator)
    predicted = torch.where(torch.rand(rows, generator=generator) < skill, truth, guess)
    metric = measure(predicted, truth, cuts, space(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single label
        expected = {
            "accuracy": accuracy_score(truth, predicted),
            "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
            "mcc": matthews_corrcoef(truth, predicted),
        }
    assert numbers(metric) == pytest.approx(expected, abs=1e-6)
    check_per_label(metric, predicted, truth, classes)


@settings(max_examples=110, deadline=None)
@given(case=cases(), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_several_labels_a_row(case: tuple[int, int, int, list[int]], density: float) -> None:
    classes, rows, seed, cuts = case
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(rows, classes, generator=generator) < density).float()
    flip = torch.rand(rows, classes, generator=generator) < 0.3
    predicted = torch.where(flip, 1 - truth, truth).long()
    metric = measure(predicted, truth, cuts, space(classes, True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": accuracy_score(truth, predicted),
            # Labels that occur nowhere are left out, as they are in scikit-learn with one label a row.
            "macro_f1": f1_score(truth, predicted, average="macro", zero_division=np.nan),
            "mcc": matthews_corrcoef(truth.flatten(), predicted.flatten()),
        }
    if not (truth.any() or predicted.any()):
        expected["macro_f1"] = 0.0  # no label anywhere: nothing to be right about
    assert numbers(metric) == pytest.approx(expected, abs=1e-6)
    check_per_label(metric, predicted, truth, classes)


def test_large_counts_lose_nothing() -> None:
    # In fp32, 2^24 + 1 rows are 2^24.
    metric = ClassificationMetrics(space(2))
    metric.confusion += torch.tensor([[2**24, 1], [0, 2**24]])
    metric.rows += torch.tensor([2**25, 2**25 + 1])
    table = metric.per_label()
    assert table["label 0"]["support"] == 2**24 + 1
    metric.update(torch.tensor([0]), torch.tensor([0]))
    assert float(metric.compute()["mcc"]) == pytest.approx(1.0, abs=1e-6)


def test_a_label_never_predicted_and_never_true_is_left_out_of_the_mean() -> None:
    metric = measure(torch.tensor([0, 0]), torch.tensor([0, 0]), [], space(3))
    assert numbers(metric) == {"accuracy": 1.0, "macro_f1": 1.0, "mcc": 0.0}


def test_reset_starts_anew_and_nothing_counted_is_zero() -> None:
    metric = measure(torch.tensor([0, 1]), torch.tensor([0, 0]), [], space(2))
    assert numbers(metric)["accuracy"] == 0.5
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert set(numbers(metric).values()) == {0.0}


def test_counts_of_two_ranks_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(4, (2, 50), generator=generator)
    whole = measure(predicted, truth, [], space(4))
    halves = [measure(p, t, [], space(4)) for p, t in zip(predicted.split(31), truth.split(31), strict=True)]
    merged = ClassificationMetrics(space(4))
    merged.update(predicted[:1], truth[:1])
    merged.confusion = halves[0].confusion + halves[1].confusion
    merged.rows = halves[0].rows + halves[1].rows
    assert numbers(merged) == numbers(whole)
    assert set(whole._reductions) == {"confusion", "rows"}
    gathered = torch.stack([h.confusion for h in halves])
    reduce = whole._reductions["confusion"]
    assert callable(reduce)
    assert torch.equal(reduce(gathered), whole.confusion)
