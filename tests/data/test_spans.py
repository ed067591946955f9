"""Spans of characters as entities of words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.spans import span_fault, text_words
from llm_arch.data.words import split
from llm_arch.tags import Entity


def span(start: int, end: int, label: str = "x") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def test_words_and_entities() -> None:
    text = "打开 living room的灯。"
    found = text_words(text, [span(14, 15, "name"), span(3, 14, "area")], [(i, i + 1) for i in range(len(text))])
    assert [text[start:end] for start, end in found.words] == ["打", "开", "living", "room", "的", "灯", "。"]
    assert found.tokens == [0, 1, 3, 10, 14, 15, 16]
    assert found.entities == [Entity(2, 4, "area"), Entity(4, 5, "name")]
    assert not found.inside


def test_a_span_cuts_a_word() -> None:
    text = "das Schlafzimmers!"
    tokens = [(0, 3), (4, 10), (10, 17), (17, 18)]
    found = text_words(text, [span(4, 16, "area")], tokens)
    assert [text[start:end] for start, end in found.words] == ["das", "Schlafzimmer", "s", "!"]
    assert found.tokens == [0, 1, 2, 3]
    assert found.entities == [Entity(1, 2, "area")]
    assert found.inside
    assert not text_words(text, [], tokens).inside


def test_words_of_one_token_are_one_word_unless_a_span_parts_them() -> None:
    text = "北京话!!"
    tokens = [(0, 2), (2, 3), (3, 5)]
    assert text_words(text, [], tokens)[:2] == ([(0, 2), (2, 3), (3, 5)], [0, 1, 2])
    whole = text_words(text, [span(0, 2)], tokens)
    assert (whole.words, whole.entities, whole.inside) == ([(0, 2), (2, 3), (3, 5)], [Entity(0, 1, "x")], False)
    parted = text_words(text, [span(1, 3)], tokens)
    assert (parted.words, parted.tokens) == ([(0, 1), (1, 2), (2, 3), (3, 5)], [0, 0, 1, 2])
    assert (parted.entities, parted.inside) == ([Entity(1, 3, "x")], True)


def test_a_dropped_word_is_not_joined_to_the_one_whose_token_it_has() -> None:
    found = text_words("a \x07 b \x07", [], [(0, 1), (4, 5)])
    assert (found.words, found.tokens) == ([(0, 1), (2, 3), (4, 5), (6, 7)], [0, 1, 1, 1])


def test_white_space_at_the_ends_of_a_span_is_no_part_of_it() -> None:
    found = text_words("a  b  c", [span(1, 6)], [(0, 1), (3, 4), (6, 7)])
    assert found.entities == [Entity(1, 2, "x")]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]], list[tuple[int, int]]]:
    """A text, spans in any order that hold something, and tokens of one to three characters."""
    text = draw(st.text(st.sampled_from("ab 京ไน้.\u200b"), min_size=1, max_size=14))
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pairs = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if text[a:b].strip() and draw(st.booleans())]
    spans = draw(st.permutations([span(a, b, draw(st.sampled_from("xy"))) for a, b in pairs]))
    offsets, end = [], 0
    while end < len(text):
        start, end = end, min(len(text), end + draw(st.integers(1, 3)))
        if draw(st.integers(0, 5)):
            offsets.append((start, end))
    return text, spans, offsets


@settings(max_examples=300, deadline=None)
@given(labelled())
def test_every_character_has_the_tag_of_its_span(
    drawn: tuple[str, list[dict[str, Any]], list[tuple[int, int]]],
) -> None:
    text, spans, offsets = drawn
    assert span_fault(spans, text, "spans") is None
    found = text_words(text, spans, offsets)
    of_char = {i: number for number, one in enumerate(spans) for i in range(one["start"], one["end"])}
    in_order = sorted(range(len(spans)), key=lambda number: spans[number]["start"])
    assert [entity.label for entity in found.entities] == [spans[number]["label"] for number in in_order]
    of_word = {w: in_order[i] for i, entity in enumerate(found.entities) for w in range(entity.start, entity.end)}
    covered: set[int] = set()
    for number, (start, end) in enumerate(found.words):
        own = {i for i in range(start, end) if not text[i].isspace()}
        assert {of_char.get(i) for i in own} == {of_word.get(number)}
        assert not covered & own
        covered |= own
    assert covered == {i for i, char in enumerate(text) if not char.isspace()}
    borders = {one[end] for one in spans for end in ("start", "end")}
    if any(start < border < end for start, end in split(text) for border in borders):
        assert found.inside


WRITE = '; write spans as {"start": 0, "end": 3, "label": "person"}'


@pytest.mark.parametrize(
    ("spans", "fault"),
    [
        ("x", "'slots' holds str instead of a list of spans; fix the row"),
        ([[0, 1, "x"]], "'slots' holds [0, 1, 'x']" + WRITE),
        ([{"start": 0, "end": 1}], "'slots' holds {'start': 0, 'end': 1}" + WRITE),
        ([span(0, 1.0)], "'slots' has a span from 0 to 1.0; start and end are whole numbers"),
        ([span(False, 1)], "'slots' has a span from False to 1; start and end are whole numbers"),
        ([span(0, 1, "  ")], "'slots' has a span with the label '  '; name the type of the entity"),
        ([span(0, 1, 3)], "'slots' has a span with the label 3; name the type of the entity"),
        ([span(0, 6)], "'slots' has a span from 0 to 6, but the text has 5 characters, end exclusive"),
        ([span(-1, 2)], "'slots' has a span from -1 to 2, but the text has 5 characters, end exclusive"),
        ([span(2, 2)], "'slots' has a span from 2 to 2, but the text has 5 characters, end exclusive"),
        ([span(1, 2)], "'slots' has a span from 1 to 2 that holds white space alone; fix the row"),
        ([span(2, 5), span(0, 3, "y")], "'slots' has spans that overlap: y (0 to 3) and x (2 to 5); keep one of them"),
        ([span(0, 1), span(0, 1)], "'slots' has spans that overlap: x (0 to 1) and x (0 to 1); keep one of them"),
    ],
)  # fmt: skip
def test_span_fault(spans: Any, fault: str) -> None:
    assert span_fault(spans, "a bcd", "slots") == fault


def test_spans_without_fault() -> None:
    assert span_fault([], "a bcd", "slots") is None
    assert span_fault([span(2, 5), span(0, 2)], "a bcd", "slots") is None
