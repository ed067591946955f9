"""Tags and entities: against seqeval, against regular expressions, and there and back."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from llm_arch.tags import (
    Entity,
    Scheme,
    allowed,
    entities,
    faults,
    scheme_of,
    split_tag,
    strict_entities,
    tag_names,
    tags_of,
)
from llm_arch.types import UserError

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
NAMES = {scheme: tag_names(("x", "y", "z-w"), scheme) for scheme in SCHEMES}

# What a whole row may look like, a tag written as prefix and label and a blank.
WELL_SPELLED = {
    "io": r"(O |I[xy] )*",
    "bio": r"(O |Bx (Ix )*|By (Iy )*)*",
    "bioes": r"(O |S[xy] |Bx (Ix )*Ex |By (Iy )*Ey )*",
}


def rows_of(scheme: Scheme) -> st.SearchStrategy[list[str]]:
    """Any tags at all: most rows have faults."""
    return st.lists(st.sampled_from(NAMES[scheme]), max_size=12)


any_row = st.sampled_from(SCHEMES).flatmap(lambda scheme: st.tuples(st.just(scheme), rows_of(scheme)))


@st.composite
def spelled(draw: st.DrawFn) -> tuple[Scheme, int, list[Entity]]:
    """A scheme, a number of words, and entities that lie apart."""
    count = draw(st.integers(0, 12))
    cuts = draw(st.lists(st.integers(0, count), unique=True).map(sorted))
    found = [
        Entity(start, end, draw(st.sampled_from(("x", "y", "z-w"))))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return draw(st.sampled_from(SCHEMES)), count, found


def written(tags: tuple[str, ...] | list[str]) -> str:
    return "".join(tag.replace("-", "") + " " for tag in tags)


# Reading


@settings(max_examples=400, deadline=None)
@given(case=any_row)
def test_repaired_entities_are_those_of_seqevals_default(case: tuple[Scheme, list[str]]) -> None:
    scheme, tags = case
    expected = [Entity(start, last + 1, label) for label, start, last in get_entities(tags)]
    assert entities(tags, scheme) == expected
    if scheme == "io":
        assert strict_entities(tags, scheme) == expected


@settings(max_examples=400, deadline=None)
@given(case=any_row.filter(lambda case: case[0] != "io"))
def test_strict_entities_are_those_of_seqevals_strict_mode(case: tuple[Scheme, list[str]]) -> None:
    scheme, tags = case
    (expected,) = Entities([tags], {"bio": IOB2, "bioes": IOBES}[scheme]).entities
    assert strict_entities(tags, scheme) == [Entity(e.start, e.end, e.tag) for e in expected]


def test_repairs_by_example() -> None:
    tags = ["I-x", "I-y", "O", "B-x", "I-y", "B-y", "I-y"]
    assert entities(tags, "bio") == [(0, 1, "x"), (1, 2, "y"), (3, 4, "x"), (4, 5, "y"), (5, 7, "y")]
    assert strict_entities(tags, "bio") == [(3, 4, "x"), (5, 7, "y")]
    tags = ["B-x", "O", "B-x", "E-x", "E-x", "S-x", "I-x", "B-x"]
    assert entities(tags, "bioes") == [(0, 1, "x"), (2, 4, "x"), (4, 5, "x"), (5, 6, "x"), (6, 7, "x"), (7, 8, "x")]
    assert strict_entities(tags, "bioes") == [(2, 4, "x"), (5, 6, "x")]
    assert entities(["I-x", "I-x", "I-y"], "io") == [(0, 2, "x"), (2, 3, "y")]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("read", [entities, strict_entities, faults])
def test_no_words_hold_nothing(scheme: Scheme, read: Any) -> None:
    assert read([], scheme) == []


# Faults


@settings(max_examples=300, deadline=None)
@given(case=any_row)
def test_a_row_without_faults_reads_the_same_strictly_and_not(case: tuple[Scheme, list[str]]) -> None:
    scheme, tags = case
    wrong = faults(tags, scheme)
    assert wrong == sorted(set(wrong))
    if not wrong:
        assert entities(tags, scheme) == strict_entities(tags, scheme)
    assert bool(wrong) == (tags_of(strict_entities(tags, scheme), len(tags), scheme) != tags)


def test_faults_are_named_where_they_are() -> None:
    assert faults(["I-x", "I-x", "I-y", "O", "B-y", "I-y", "I-x"], "bio") == [0, 2, 6]
    assert faults(["B-x", "B-x", "I-x", "O", "S-x", "E-x"], "bioes") == [1, 3, 5]
    assert faults(["O", "B-x", "I-x"], "bioes") == [2]  # the row ends within an entity
    assert faults(["B-x"], "bioes") == [0]
    assert faults(["I-x"], "bioes") == [0]  # neither the beginning nor the end may be so
    assert faults(["I-x", "O", "I-y", "I-x"], "io") == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_allowed_tags_make_the_well_spelled_rows(scheme: Scheme) -> None:
    names = tag_names("xy", scheme)[::-1]  # in any order
    rules = allowed(names, scheme)
    for length in range(1, 5 if scheme == "bioes" else 6):
        for row in product(range(len(names)), repeat=length):
            tags = [names[i] for i in row]
            fine = rules.start[row[0]] and rules.end[row[-1]]
            fine = fine and all(rules.transition[a][b] for a, b in zip(row, row[1:], strict=False))
            assert fine == bool(re.fullmatch(WELL_SPELLED[scheme], written(tags)))
            assert fine == (not faults(tags, scheme))


# Writing


@settings(max_examples=300, deadline=None)
@given(case=spelled())
def test_what_is_written_is_read_again(case: tuple[Scheme, int, list[Entity]]) -> None:
    scheme, count, given_ = case
    tags = tags_of(given_[::-1], count, scheme)
    assert len(tags) == count
    assert set(tags) <= {"O", *NAMES[scheme]}
    assert faults(tags, scheme) == []
    if scheme == "io":  # what touches and is alike has become one
        covered = {(i, label) for start, end, label in given_ for i in range(start, end)}
        assert {(i, label) for start, end, label in entities(tags, "io") for i in range(start, end)} == covered
    else:
        assert entities(tags, scheme) == strict_entities(tags, scheme) == given_


def test_written_by_example() -> None:
    found = [Entity(0, 1, "x"), Entity(1, 4, "y")]
    assert tags_of(found, 5, "bio") == ["B-x", "B-y", "I-y", "I-y", "O"]
    assert tags_of(found, 5, "bioes") == ["S-x", "B-y", "I-y", "E-y", "O"]
    assert tags_of(found, 5, "io") == ["I-x", "I-y", "I-y", "I-y", "O"]


def test_tag_names_are_sorted_by_label() -> None:
    assert tag_names(["b", "a", "b"], "bio") == ("O", "B-a", "I-a", "B-b", "I-b")
    assert tag_names(["a"], "bioes") == ("O", "B-a", "I-a", "E-a", "S-a")
    assert tag_names(["b", "a"], "io") == ("O", "I-a", "I-b")
    assert tag_names([], "bio") == ("O",)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_is_told_by_the_tags(scheme: Scheme) -> None:
    assert scheme_of(NAMES[scheme]) == scheme
    assert scheme_of(["O"]) == "io"
    assert scheme_of(["O", "S-x"]) == scheme_of(["I-x", "E-x"]) == "bioes"


# What the user is told


@pytest.mark.parametrize(
    ("tag", "parts"), [("O", ("O", "")), ("B-person", ("B", "person")), ("S-a-b", ("S", "a-b")), ("I--", ("I", "-"))]
)
def test_a_tag_is_a_prefix_and_a_label(tag: str, parts: tuple[str, str]) -> None:
    assert split_tag(tag) == parts


@pytest.mark.parametrize("tag", ["Bperson", "X-person", "B-", "B", "", "-", "o", "O-x", "BI-x", "person-B", " B-x"])
def test_anything_else_is_no_tag(tag: str) -> None:
    with pytest.raises(UserError, match=f"{tag!r} is no tag; write O, or B-, I-, E- or S- and a label"):
        split_tag(tag)
    with pytest.raises(UserError, match="is no tag"):
        scheme_of(["O", tag])


@pytest.mark.parametrize(("scheme", "tag"), [("bio", "E-x"), ("bio", "S-x"), ("io", "B-x")])
@pytest.mark.parametrize("read", [entities, strict_entities, faults, allowed])
def test_tags_of_another_scheme_are_refused(scheme: Scheme, tag: str, read: Any) -> None:
    with pytest.raises(UserError, match=f"the tag '{tag}' is not of the scheme {scheme}, which has "):
        read(["O", tag], scheme)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([Entity(2, 4, "x")], r"the entity 'x' is words 2 to 4 \(exclusive\) of a row of 3 words"),
        ([Entity(-1, 1, "x")], "the entity 'x' is words -1 to 1"),
        ([Entity(1, 1, "x")], "the entity 'x' is words 1 to 1"),
        ([Entity(0, 2, "x"), Entity(1, 3, "y")], r"the entity 'y', words 1 to 3 \(exclusive\), overlaps another"),
        ([Entity(0, 3, "x"), Entity(1, 2, "x")], "overlaps another"),
    ],
)
def test_impossible_entities_are_refused(wrong: list[Entity], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tags_of(wrong, 3, "bio")
