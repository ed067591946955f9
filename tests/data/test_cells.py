"""What is wrong with cells that must hold a text or a number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.data.cells import number_fault, number_of, text_fault


def test_texts() -> None:
    values = {"a": "x", "b": " \n", "c": 3, "d": None}
    assert text_fault(values, ("a", None)) is None
    assert text_fault(values, ("a", "b", "c")) == "'b' is empty; fix the row"
    assert text_fault(values, ("c",)) == "'c' holds int instead of text; fix the row"
    assert text_fault(values, ("d",)) == "'d' holds NoneType instead of text; fix the row"


@pytest.mark.parametrize(("cell", "number"), [(3, 3.0), (-2.5, -2.5), (" 1e3 ", 1000.0), ("-.5", -0.5), ("0", 0.0)])
def test_numbers(cell: Any, number: float) -> None:
    assert number_fault({"n": cell}, "n") is None
    assert number_of(cell) == number


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("", "'n' is empty; fix the row"),
        (" ", "'n' is empty; fix the row"),
        ("three", "'n' holds 'three', which is no number; fix the row"),
        ("3,5", "'n' holds '3,5', which is no number; fix the row"),
        ("1_000", "'n' holds '1_000', which is no number; fix the row"),
        (True, "'n' holds True, which is no number; fix the row"),
        ([1], "'n' holds [1], which is no number; fix the row"),
        (None, "'n' holds None, which is no number; fix the row"),
        ("nan", "'n' holds 'nan', which is no finite number; fix the row"),
        ("-inf", "'n' holds '-inf', which is no finite number; fix the row"),
        (float("nan"), "'n' holds nan, which is no finite number; fix the row"),
        (float("inf"), "'n' holds inf, which is no finite number; fix the row"),
        (1e39, "'n' holds 1e+39, which is no finite number; fix the row"),  # to the model, whose floats have 32 bits
    ],
)
def test_what_is_no_number(cell: Any, fault: str) -> None:
    assert number_fault({"n": cell}, "n") == fault


def test_a_number_too_long_for_a_float() -> None:
    assert str(number_fault({"n": 10**400}, "n")).endswith("which is no number; fix the row")


@given(st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda n: abs(n) < 3e38))
def test_floats_survive_as_numbers_and_as_text(number: float) -> None:
    assert number_of(number) == number_of(repr(number)) == number
    assert number_fault({"n": repr(number)}, "n") is None
