"""Entity metrics against seqeval, for any tags and any cut into batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2, IOBES

from llm_arch.heads.entities import EntityMetrics
from llm_arch.measures import Reports
from llm_arch.tags import Entity, Scheme, scheme_of, tag_names, tags_of

LABELS = ("a", "b", "c-d")
Rows = list[list[str]]


def measure(predicted: Rows, truth: Rows, names: Sequence[str], sizes: Sequence[int] | None = None) -> EntityMetrics:
    """A metric that has seen the rows in batches of some sizes, or in one."""
    metric, place = EntityMetrics(names), {name: i for i, name in enumerate(names)}
    first = 0
    for size in sizes or [len(truth)]:
        here = slice(first, first + size)
        lengths = torch.tensor([len(row) for row in truth[here]], dtype=torch.long)
        both = (torch.tensor([place[t] for row in r[here] for t in row], dtype=torch.long) for r in (predicted, truth))
        metric.update(*both, torch.repeat_interleave(torch.arange(len(lengths)), lengths))
        first += size
    assert first >= len(truth)
    return metric


def numbers(metric: EntityMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def expected(predicted: Rows, truth: Rows, scheme: Scheme) -> dict[str, float]:
    """The same by seqeval; for io, strict is its default."""
    strict = {} if scheme == "io" else {"mode": "strict", "scheme": {"bio": IOB2, "bioes": IOBES}[scheme]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no entity
        return {
            "precision": seqeval.precision_score(truth, predicted, **strict),
            "recall": seqeval.recall_score(truth, predicted, **strict),
            "f1": seqeval.f1_score(truth, predicted, **strict),
            "f1_default": seqeval.f1_score(truth, predicted),
            # The mean of no labels, which seqeval makes nan, is 0 here.
            "macro_f1": np.nan_to_num(seqeval.f1_score(truth, predicted, average="macro", **strict)),
            "accuracy": seqeval.accuracy_score(truth, predicted),
        }


def random_rows(names: Sequence[str], count: int, seed: int, spelled: float) -> tuple[Rows, Rows]:
    """Predictions that are partly right, and truth; a share of rows well spelled, the others of any tags."""
    generator = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def row(length: int) -> list[str]:
        if float(torch.rand((), generator=generator)) >= spelled:
            return [names[below(len(names))] for _ in range(length)]
        found: list[Entity] = []
        at = 0
        while at < length:
            end = min(length, at + 1 + below(3))
            found += [Entity(at, end, LABELS[below(3)])] if below(2) else []
            at = end
        return tags_of(found, length, scheme_of(names))

    truth, predicted = [], []
    for _ in range(count):
        length = 1 + below(10)
        right, other = row(length), row(length)
        keep = float(torch.rand((), generator=generator))
        mixed = [
            r if float(torch.rand((), generator=generator)) < keep else o for r, o in zip(right, other, strict=True)
        ]
        truth.append(right)
        predicted.append([right, other, mixed][below(3)])
    return predicted, truth


@pytest.mark.parametrize("scheme", ["bio", "bioes", "io"])
@pytest.mark.parametrize("spelled", [0.0, 0.5, 1.0])
def test_a_thousand_rows(scheme: Scheme, spelled: float) -> None:
    names = tag_names(LABELS, scheme)
    predicted, truth = random_rows(names, 1000, 7, spelled)
    wanted = expected(predicted, truth, scheme)
    assert 0 < wanted["f1"] < 1
    whole = measure(predicted, truth, names)
    assert numbers(whole) == pytest.approx(wanted, abs=1e-6)
    assert numbers(measure(predicted, truth, names, [1, 2, 397, 600])) == numbers(whole)
    if scheme != "io" and spelled < 1:
        assert wanted["f1"] != wanted["f1_default"]


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(["bio", "bioes", "io"]),
    seed=st.integers(0, 2**31),
    spelled=st.sampled_from([0.0, 0.7, 1.0]),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_few_rows_in_any_batches(scheme: Scheme, seed: int, spelled: float, sizes: list[int]) -> None:
    names = tag_names(LABELS, scheme)
    predicted, truth = random_rows(names, sum(sizes), seed, spelled)
    assert numbers(measure(predicted, truth, names, sizes)) == pytest.approx(
        expected(predicted, truth, scheme), abs=1e-6
    )


@pytest.mark.parametrize("scheme", ["bio", "bioes", "io"])
def test_each_label(scheme: Scheme) -> None:
    names = tag_names((*LABELS, "never"), scheme)
    predicted, truth = random_rows(tag_names(LABELS, scheme), 200, 3, 0.5)
    strict = {} if scheme == "io" else {"mode": "strict", "scheme": {"bio": IOB2, "bioes": IOBES}[scheme]}
    wanted = seqeval.classification_report(truth, predicted, output_dict=True, zero_division=0, **strict)
    metric = measure(predicted, truth, names)
    assert isinstance(metric, Reports)
    found = metric.per_label()
    assert list(found) == ["a", "b", "c-d", "never"]
    assert found.pop("never") == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    for label, row in found.items():
        theirs = {k.removesuffix("-score"): float(v) for k, v in wanted[label].items()}
        assert row == pytest.approx(theirs, abs=1e-9)


def test_an_entity_does_not_reach_into_the_next_row() -> None:
    names = tag_names("a", "bio")
    truth = [["B-a"], ["I-a", "O"]]
    metric = measure([["B-a"], ["B-a", "O"]], truth, names)
    # The lone I is an entity of its own when repaired, and none when read strictly.
    assert numbers(metric) == pytest.approx(
        {"precision": 1 / 2, "recall": 1, "f1": 2 / 3, "f1_default": 1, "macro_f1": 2 / 3, "accuracy": 2 / 3}
    )


def test_right_needs_borders_and_label() -> None:
    names = tag_names(("a", "b"), "bio")
    truth = [["B-a", "I-a", "O"], ["B-a", "O", "O"], ["O", "B-b", "I-b"]]
    metric = measure([["B-a", "O", "O"], ["B-b", "O", "O"], ["O", "B-b", "I-b"]], truth, names)
    found = numbers(metric)
    assert (found["precision"], found["recall"]) == pytest.approx((1 / 3, 1 / 3))
    assert found["macro_f1"] == pytest.approx((0 + 2 / 3) / 2)
    assert found["accuracy"] == pytest.approx(7 / 9)


def test_nothing_to_count_is_zero() -> None:
    names = tag_names("a", "bio")
    metric = measure([["O", "O"]], [["O", "O"]], names)
    assert numbers(metric) == {
        "precision": 0, "recall": 0, "f1": 0, "f1_default": 0, "macro_f1": 0, "accuracy": 1
    }  # fmt: skip
    metric.update(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    assert numbers(metric)["accuracy"] == 1
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert set(numbers(metric).values()) == {0.0}


def test_counts_of_two_ranks_add_up() -> None:
    names = tag_names(LABELS, "bio")
    predicted, truth = random_rows(names, 60, 5, 0.5)
    whole = measure(predicted, truth, names)
    halves = [measure(predicted[:31], truth[:31], names), measure(predicted[31:], truth[31:], names)]
    assert set(whole._reductions) == {"counts", "words"}
    for name, reduce in whole._reductions.items():
        assert callable(reduce)
        assert torch.equal(reduce(torch.stack([getattr(h, name) for h in halves])), getattr(whole, name))
