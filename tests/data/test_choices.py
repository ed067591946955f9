"""Choices in all their forms, and which of them an answer means."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.data.choices import Choice, choices_of, place_of
from llm_arch.types import UserError

TEXTS = ["one", "two", "three"]


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (TEXTS, [None] * 3),
        ([f" {text} " for text in TEXTS], [None] * 3),
        ({"text": TEXTS}, [None] * 3),
        ({"text": TEXTS, "label": ["A", "B", "C"]}, ["A", "B", "C"]),
        ({"text": TEXTS, "label": [1, 2, 3]}, ["1", "2", "3"]),
        ([{"text": text} for text in TEXTS], [None] * 3),
        ([{"label": label, "text": text} for label, text in zip("ABC", TEXTS, strict=True)], ["A", "B", "C"]),
    ],
)
def test_forms(cell: Any, labels: list[str | None]) -> None:
    assert choices_of(cell, "c") == list(zip(labels, TEXTS, strict=True))


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("a|b", "'c' holds str instead of a list of choices; where each has a column, name them with --data.choice_co"),
        ({"label": ["A", "B"]}, "'c' holds dict instead of a list of choices; where each has a column"),
        (3, "'c' holds int instead of a list of choices"),
        ([], "has no choices ('c'); a question needs two or more"),
        ({"label": [], "text": []}, "has no choices ('c'); a question needs two or more"),
        (["a"], "has 1 choice ('c'); a question needs two or more"),
        (["a", 2], "'c' has the choice 2, which is no text; fix the row"),
        (["a", None], "'c' has the choice None, which is no text; fix the row"),
        (["a", " "], "'c' has the choice ' ', which is no text; fix the row"),
        ([{"label": "A"}, {"text": "b"}], "'c' has the choice None, which is no text; fix the row"),
        (["a", "b", "a "], "'c' has the choice 'a' twice; fix the row"),
        (["a", "a", "b", "a"], "'c' has the choice 'a' 3 times; fix the row"),
        ({"label": ["A"], "text": ["a", "b"]}, "'c' has 2 choices, but labels ['A']; give each one"),
        ({"label": "AB", "text": ["a", "b"]}, "'c' has 2 choices, but labels 'AB'; give each one"),
        ({"label": ["A", "A"], "text": ["a", "b"]}, "'c' has the label 'A' twice; fix the row"),
        (
            {"label": ["A", None], "text": ["a", "b"]},
            "'c' has a choice with the label None, which is none; fix the row",
        ),
        ({"label": ["A", ""], "text": ["a", "b"]}, "'c' has a choice with the label '', which is none; fix the row"),
        (
            [{"label": 1.5, "text": "a"}, {"label": 2, "text": "b"}],
            "'c' has a choice with the label 1.5, which is none",
        ),
    ],
)
def test_what_is_no_choice(cell: Any, fault: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(fault)}"):
        choices_of(cell, "c")


BARE: list[Choice] = [(None, "2"), (None, "0"), (None, "no")]
LABELLED: list[Choice] = [("1", "x"), ("2", "1"), ("B", "y")]


@pytest.mark.parametrize(
    ("answer", "choices", "place"),
    [
        (0, BARE, 0),
        (2, BARE, 2),
        ("no", BARE, 2),
        (" no ", BARE, 2),
        ("2", BARE, 0),  # a text, and not a number
        ("0", BARE, 1),
        ("1", BARE, 1),  # no text, so a number, as all cells of a .csv are text
        ("1", LABELLED, 0),  # a label before a text
        (1, LABELLED, 0),
        ("B", LABELLED, 2),
        ("y", LABELLED, 2),
        (0, LABELLED, 0),  # no label, so a number
        (True, [(None, "False"), (None, "True")], 1),
    ],
)
def test_answers(answer: Any, choices: list[Choice], place: int) -> None:
    assert place_of(answer, choices, "a") == place


@pytest.mark.parametrize(
    ("answer", "choices", "fault"),
    [
        (3, BARE, "'a' is 3, but the choices are numbered from 0 to 2"),
        ("3", BARE, "'a' is 3, but the choices are numbered from 0 to 2"),
        (-1, BARE, "'a' is -1, but the choices are numbered from 0 to 2"),
        ("yes", BARE, "'a' holds 'yes', which is none of the choices: '2', '0', 'no'"),
        ("A", LABELLED, "'a' holds 'A', which is none of the choices: 1 ('x'), 2 ('1'), B ('y')"),
        ("", BARE, "'a' holds '', which is none of the choices"),
        (1.0, BARE, "'a' holds 1.0, which is none of the choices"),
        (None, BARE, "'a' holds None, which is none of the choices"),
        (["no"], BARE, "'a' holds ['no'], which is none of the choices"),
        (True, BARE, "'a' holds True, which is none of the choices"),
        ("x", [(None, str(i)) for i in range(9)], "'a' holds 'x', which is none of the choices: '0', '1', '2', '3', "),
    ],
)
def test_what_is_no_answer(answer: Any, choices: list[Choice], fault: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(fault)}"):
        place_of(answer, choices, "a")


@given(texts=st.lists(st.text(min_size=1).filter(str.strip).map(str.strip), min_size=2, unique=True), data=st.data())
def test_every_choice_can_be_named(texts: list[str], data: st.DataObject) -> None:
    choices = choices_of(texts, "c")
    place = data.draw(st.integers(0, len(texts) - 1))
    assert place_of(place, choices, "a") == place_of(texts[place], choices, "a") == place
    labelled = choices_of({"text": texts, "label": [f"<{i}>" for i in range(len(texts))]}, "c")
    assert place_of(labelled[place][0], labelled, "a") == place
