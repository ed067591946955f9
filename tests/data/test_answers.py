"""Answers of a row: their forms, what can be wrong with them, and the tokens that they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.answers import Answer, Names, answers_fault, answers_of, characters, shown_tokens, token_span

NAMES = Names()
CONTEXT = "The cat sat on the mat."


def row(**values: Any) -> dict[str, Any]:
    return {"question": "Where?", "context": CONTEXT, **values}


TWO = [Answer("the mat", 15), Answer("mat", 19)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"answers": {"text": ["the mat", "mat"], "answer_start": [15, 19]}}, TWO),
        ({"answers": [{"text": "the mat", "answer_start": 15}, {"text": "mat", "answer_start": 19, "more": 1}]}, TWO),
        ({"answers": {"text": [], "answer_start": []}}, []),
        ({"answers": []}, []),
        ({"answers": [], "answer": "mat"}, []),
        ({"answer": "mat", "answer_start": 19}, TWO[1:]),
        ({"answer": "mat", "answer_start": " 19"}, TWO[1:]),
        ({"answer": "mat"}, TWO[1:]),
        ({"answer": "mat", "answer_start": ""}, TWO[1:]),
        ({"answer": "", "answer_start": "-1"}, []),
        ({"answer": None}, []),
        ({"answers": None, "answer": None}, []),
        ({"answer": "The", "answer_start": 0}, [Answer("The", 0)]),
    ],
)
def test_forms(values: dict[str, Any], expected: list[Answer]) -> None:
    assert answers_fault(row(**values), NAMES) is None
    assert answers_of(row(**values), NAMES) == expected


FORM = '; write {"text": ["…"], "answer_start": [0]}, both empty for none'


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"answers": "mat"}, f"'answers' holds 'mat'{FORM}"),
        ({"answers": ["mat"]}, f"'answers' holds ['mat']{FORM}"),
        (
            {"answers": {"text": ["mat"], "answer_start": []}},
            "'answers' holds {'text': ['mat'], 'answer_start': []}" + FORM,
        ),
        (
            {"answers": {"text": "mat", "answer_start": 19}},
            "'answers' holds {'text': 'mat', 'answer_start': 19}" + FORM,
        ),
        ({"answers": {"text": ["mat"] * 40}}, "'answers' holds " + repr({"text": ["mat"] * 40})[:60] + "…" + FORM),
        (
            {"answer": "mat", "answer_start": 18},
            "the answer 'mat' does not stand at character 18 of the context, but at 19; fix the row",
        ),
        (
            {"answers": {"text": ["mat", "dog"], "answer_start": [19, 4]}},
            "the answer 'dog' does not stand at character 4 of the context, nor anywhere else in it; fix the row",
        ),
        (
            {"answer": "dog"},
            "the answer 'dog' does not stand in the context; fix the row",
        ),
        (
            {"answer": ".", "answer_start": -1},
            "the answer '.' does not stand at character -1 of the context, but at 22; fix the row",
        ),
        (
            {"answer": "at"},
            "the answer 'at' stands in the context several times; "
            "say which is meant: 'answer_start' is its first character",
        ),
        (
            {"answer": "mat", "answer_start": 19.5},
            "has the answer 'mat' at 19.5; an answer is a text, and its place a whole number",
        ),
        (
            {"answer": "mat", "answer_start": "x"},
            "has the answer 'mat' at 'x'; an answer is a text, and its place a whole number",
        ),
        (
            {"answer": "mat", "answer_start": True},
            "has the answer 'mat' at True; an answer is a text, and its place a whole number",
        ),
        ({"answer": 5, "answer_start": 1}, "has the answer 5 at 1; an answer is a text, and its place a whole number"),
        (
            {"answers": {"text": [" "], "answer_start": [3]}},
            "has an answer without characters; leave the answers of a question that has none empty",
        ),
    ],
)
def test_faults(values: dict[str, Any], fault: str) -> None:
    assert answers_fault(row(**values), NAMES) == fault


def test_names_of_columns() -> None:
    names = Names("q", "text", "golds", "gold", "at", None)
    values = {"q": "Where?", "text": CONTEXT, "gold": "mat", "at": 19, "answers": "something else"}
    assert answers_of(values, names) == TWO[1:]


# Tokens


def test_tokens_without_the_white_space_around_them() -> None:
    offsets = [(0, 3), (3, 7), (7, 8), (8, 11), (11, 11)]
    assert shown_tokens("The cat \tis", offsets) == ([0, 1, 3], [(0, 3), (4, 7), (9, 11)])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("cat", 4), (1, 1)),
        (Answer("he c", 1), (0, 1)),
        (Answer(" cat ", 3), (1, 1)),
        (Answer("The cat is", 0), (0, 2)),
        (Answer("i", 8), (2, 2)),
    ],
)
def test_tokens_of_an_answer(answer: Answer, expected: tuple[int, int]) -> None:
    assert token_span(answer, [(0, 3), (4, 7), (8, 10)]) == expected


def test_an_answer_between_tokens_has_none() -> None:
    assert token_span(Answer("\u200b", 3), [(0, 3), (4, 7)]) is None
    assert token_span(Answer("x", 0), []) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=8), st.data())
def test_tokens_of_an_answer_are_those_that_share_characters(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    words, end = [], 0
    for gap, size in steps:
        words.append((end + gap, end + gap + size))
        end += gap + size
    start = data.draw(st.integers(0, end - 1))
    stop = data.draw(st.integers(start + 1, end))
    shared = [i for i, (a, b) in enumerate(words) if a < stop and b > start]
    expected = (shared[0], shared[-1]) if shared else None
    assert token_span(Answer("x" * (stop - start), start), words) == expected


def test_characters_of_an_answer() -> None:
    assert characters(Answer(" the mat\n", 14)) == (15, 22)
