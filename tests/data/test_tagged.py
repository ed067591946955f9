"""Tags of every scheme, read as the entities they were written from."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.sources import Row
from llm_arch.data.tagged import TagsFound, in_scheme, tags_among
from llm_arch.tags import Entity

COLUMNS = ("tokens", "tags")


@st.composite
def sentences(draw: st.DrawFn) -> list[list[str]]:
    """The label of the entity that each word is of and its number, or none: "x1 x1 x2" are two entities."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        words: list[str] = []
        for i in range(draw(st.integers(1, 5))):
            words += [draw(st.sampled_from(["", f"x{i}", f"y{i}"]))] * draw(st.integers(1, 3))
        found.append(words)
    return found


def spelled(words: list[str], scheme: str) -> list[str]:
    tags = []
    for i, word in enumerate(words):
        before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
        first, last = word != before, word != after
        if not word:
            tags.append("O")
            continue
        if scheme == "IOB1":
            prefix = "B" if first and before[:1] == word[:1] else "I"
        elif scheme == "bio":
            prefix = "B" if first else "I"
        else:  # alone, first, inside, last
            letters = {"bioes": "SBIE", "BILOU": "UBIL", "BMES": "SBME"}[scheme]
            prefix = letters[0] if first and last else letters[1] if first else letters[3] if last else letters[2]
        tags.append(f"{prefix}-{word[0]}")
    return tags


def rows_of(tags: list[list[str]]) -> list[Row]:
    return [Row(i, {"tokens": ["w"] * len(row), "tags": row}) for i, row in enumerate(tags, start=1)]


@pytest.mark.parametrize("scheme", ["bio", "IOB1", "bioes", "BILOU", "BMES"])
@settings(max_examples=60, deadline=None)
@given(texts=sentences())
def test_every_scheme_is_told_and_turned(scheme: str, texts: list[list[str]]) -> None:
    rows = rows_of([spelled(words, scheme) for words in texts])
    found = tags_among(rows, "tags")
    assert found is not None
    facts: dict[str, Any] = {}
    turned = list(in_scheme("bio", rows, found, COLUMNS, "error", facts))
    assert [row.fault for row in turned] == [None] * len(rows)
    assert [row.values["tags"] for row in turned] == [spelled(words, "bio") for words in texts]
    assert facts == {"repaired": [0, 0]}
    again = in_scheme("bioes", turned, TagsFound("bio", False), COLUMNS, "error", facts)
    assert [row.values["tags"] for row in again] == [spelled(words, "bioes") for words in texts]


def test_names_of_schemes() -> None:
    names = {
        "I-x O B-x": "bio",
        "I-x B-x I-y": "IOB1",
        "I-x I-y": "io",
        "B-x U-y": "bioes",
        "O O": "io",
        "wrong B-x": "io",
    }
    for tags, name in names.items():
        found = tags_among(rows_of([tags.split()]), "tags")
        assert found is not None
        assert found.name == name
    assert tags_among([Row(1, {"tokens": ["a"]}), Row(2, {}, "is bad")], "tags") is None


def test_invalid_tags_are_repaired_and_counted_or_named() -> None:
    rows = [
        Row(1, {"tokens": ["a", "b"], "tags": ["B-x", "I-x"]}, None, (1, 2)),
        Row(4, {"tokens": ["a", "b", "c"], "tags": ["O", "I-x", "I-y"], "id": 7}, None, (4, 5, 7)),
        Row(9, {"tokens": ["a"], "tags": ["I-x"]}),
    ]
    found = tags_among(rows, "tags")
    assert found == TagsFound("bio", False)
    facts: dict[str, Any] = {}
    repaired = list(in_scheme("bio", rows, found, COLUMNS, "repair", facts))
    assert [row.values["tags"] for row in repaired] == [["B-x", "I-x"], ["O", "B-x", "B-y"], ["B-x"]]
    assert facts["repaired"] == [3, 5]
    assert repaired[1] == Row(4, {"tokens": ["a", "b", "c"], "tags": ["O", "B-x", "B-y"], "id": 7}, None, (4, 5, 7))
    strict = list(in_scheme("bio", rows, found, COLUMNS, "error", facts))
    end = "; mend it, or set data.on_invalid_tag to repair"
    assert strict[0] == rows[0]
    assert strict[1][::2] == (5, f"the tag I-x of 'b' can't stand between O and I-y{end}")
    assert strict[2][::2] == (9, f"the tag I-x of 'a' can't stand between the beginning and the end{end}")
    assert facts["repaired"] == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "tags", "line", "fault"),
    [
        (["a", "b"], ["O"], 3, "has 2 tokens and 1 tags; give each token one tag"),
        (["a"], "O", 3, "'tags' holds str instead of a list of tags; fix the row"),
        (["a", "b"], ["O", None], 5, "'tags' holds None, which is no tag; fix the row"),
        (["a", "b"], ["O", "NN"], 5, "'NN' is no tag; write O, or "),
        (["a", "b"], ["O", "B-"], 5, "'B-' is no tag; write O, or "),
    ],
)
def test_what_is_no_tag(tokens: Any, tags: Any, line: int, fault: str) -> None:
    rows = [Row(3, {"tokens": tokens, "tags": tags}, None, (3, 5)), Row(7, {"tokens": ["a"], "tags": ["B-x"]})]
    found = tags_among(rows, "tags")
    assert found is not None
    bad, good = in_scheme("bio", rows, found, COLUMNS, "repair", {})
    assert bad.line == line
    assert re.match(re.escape(fault), bad.fault or "")
    assert good == rows[1]


def test_rows_for_others_to_judge_are_left_alone() -> None:
    rows = [Row(1, {}, "is bad"), Row(2, {"text": "a"}), Row(3, {"tokens": "a", "tags": ["O"]}), Row(4, {"tokens": []})]
    assert list(in_scheme("bio", rows, TagsFound("bio", False), COLUMNS, "error", {})) == rows


def test_touching_entities_are_one_in_io() -> None:
    row = Row(1, {"tokens": list("abc"), "tags": ["B-x", "B-x", "O"]})
    (found,) = in_scheme("io", [row], TagsFound("bio", False), COLUMNS, "error", {})
    assert found.values["tags"] == ["I-x", "I-x", "O"]
    assert Entity(0, 2, "x") == (0, 2, "x")
