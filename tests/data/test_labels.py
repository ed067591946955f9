"""What formats with class labels share."""

from __future__ import annotations

from typing import Any

import pytest

from llm_arch.data.labels import in_order, label_fault, unknown_label
from llm_arch.types import LabelSpace


@pytest.mark.parametrize("label", ["a", "0", 0, 7, False])
def test_labels(label: Any) -> None:
    assert label_fault(label, "y") is None


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        (None, "'y' holds None, which is no label; fix the row"),
        (0.5, "'y' holds 0.5, which is no label; fix the row"),
        ({"a": 1}, "'y' holds {'a': 1}, which is no label; fix the row"),
        (["a"], "'y' holds ['a'], which is no label; fix the row"),
        (" \t", "'y' is empty; fix the row"),
    ],
)
def test_no_labels(label: Any, fault: str) -> None:
    assert label_fault(label, "y") == fault


def test_numbers_come_by_value_and_before_words() -> None:
    assert in_order(["b", "10", "9", "nan", "-1", "a", "2.5", "inf"]) == "-1 2.5 9 10 a b inf nan".split()  # noqa: SIM905


def test_what_is_said_of_an_unknown_label() -> None:
    few, many = LabelSpace(("a", "b")), LabelSpace(tuple("abcdefghijklmn"))
    assert str(unknown_label("v.csv", 3, "c", 2, few, "in the training rows")) == (
        "v.csv, line 3: the label 'c' (2 rows) does not occur in the training rows; known labels: a, b"
    )
    assert str(unknown_label("v.csv", 3, "z", 1, many, "in data.labels")) == (
        "v.csv, line 3: the label 'z' (1 rows) does not occur in data.labels; "
        "known labels: a, b, c, d, e, f, g, h, i, j, k, l …"
    )
