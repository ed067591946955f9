"""Edits of words keep what is labelled, against what the data formats say of the rows."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_arch.augmentation import Columns, Request, WordEdits
from llm_arch.augmentation.passages import editable_words
from llm_arch.augmentation.rows import read_row
from llm_arch.augmentation.words import Operation
from llm_arch.data.spans import span_fault
from llm_arch.data.words import split
from llm_arch.tags import entities, faults
from llm_arch.types import UserError

OPERATIONS = get_args(Operation)
PIECES = [
    "light",
    "don't",
    "3.5",
    "Ann",
    "kitchen",
    "well-known",
    " ",
    "  ",
    ", ",
    ".",
    "\n",
    "北",
    "京",
    "élan",
    "(",
    "กิ",
]


def edited(values: dict[str, Any], key: int, *operations: Operation, share: float = 0.3) -> Any:
    method = WordEdits(operations or OPERATIONS, share=share)
    return method([Request(read_row(values, Columns()), key)])[0]


def texts_of(text: str) -> list[str]:
    return [text[start:end] for start, end in editable_words(text)]


@st.composite
def labelled(draw: st.DrawFn) -> dict[str, Any]:
    text = "".join(draw(st.lists(st.sampled_from(PIECES), min_size=3, max_size=25)))
    borders = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [
        {"start": start, "end": end, "label": draw(st.sampled_from(["a", "b"])), "note": "kept"}
        for start, end in zip(borders[::2], borders[1::2], strict=False)
        if text[start:end].strip()
    ]
    return {"text": text, "spans": spans, "id": 7}


def _within(place: int, text: str) -> bool:
    """Whether a word goes on over a place."""
    return any(start < place < end for start, end in split(text))


@settings(max_examples=300, deadline=None)
@given(labelled(), st.integers(0, 2**32), st.sampled_from(OPERATIONS), st.sampled_from([0.1, 0.5, 1.0]))
@example({"text": ", light  light", "spans": [{"start": 0, "end": 2, "label": "a"}], "id": 7}, 1, "delete", 0.1)
def test_spans_hold_the_same_text(values: dict[str, Any], key: int, operation: Operation, share: float) -> None:
    if not values["text"].strip():
        return
    new = edited(values, key, operation, share=share)
    if new is None:
        return
    assert span_fault(new["spans"], new["text"], "spans") is None
    assert new["id"] == 7
    for old, now in zip(values["spans"], new["spans"], strict=True):
        assert new["text"][now["start"] : now["end"]] == values["text"][old["start"] : old["end"]]
        assert {**now, "start": 0, "end": 0} == {**old, "start": 0, "end": 0}
        # No word grew together with a span, and none was cut from it.
        for side in ("start", "end"):
            assert _within(old[side], values["text"]) == _within(now[side], new["text"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=4, max_size=30), st.integers(0, 2**32), st.sampled_from(OPERATIONS))
def test_what_each_operation_does_to_the_words(pieces: list[str], key: int, operation: Operation) -> None:
    text = "".join(pieces)
    if not text.strip():
        return
    new = edited({"text": text}, key, operation, share=0.2)
    if new is None:
        return
    # Words by `split` and not by our own: what is one word or several must not matter.
    before, after = (Counter(one[s:e] for s, e in split(one)) for one in (text, new["text"]))
    if operation == "swap":
        assert before == after
        assert new["text"] != text
    elif operation == "delete":
        assert after < before
    elif operation == "insert":
        assert before < after
        assert after.keys() == before.keys()
    else:
        assert sum(before.values()) == sum(after.values())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b,", "Ann", "x y", ","]), st.sampled_from(["", "p", "q"])), min_size=1),
    st.booleans(),
    st.integers(0, 2**32),
    st.sampled_from(OPERATIONS),
)
def test_tags_stay_valid(words: list[tuple[str, str]], plain: bool, key: int, operation: Operation) -> None:
    scheme: Any = "io" if plain else "bio"
    tags, last = [], ""
    for _, label in words:
        prefix = "I" if plain or label == last else "B"
        tags.append(f"{prefix}-{label}" if label else "O")
        last = label
    tokens = [word for word, _ in words]
    new = edited({"tokens": tokens, "tags": tags, "text": "old"}, key, operation, share=0.5)
    if new is None:
        return
    assert len(new["tokens"]) == len(new["tags"])
    assert new["text"] == " ".join(new["tokens"])
    assert faults(new["tags"], scheme) == []
    found = [
        [(e.label, tokens_[e.start : e.end]) for e in entities(tags_, scheme)]
        for tokens_, tags_ in ((tokens, tags), (new["tokens"], new["tags"]))
    ]
    assert found[0] == found[1]


def test_every_word_may_go_but_one() -> None:
    words = ["one", "two", "three", "four"]
    left = {edited({"text": " ".join(words)}, key, "delete", share=1.0)["text"] for key in range(60)}
    assert left == set(words)


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a bright, warm lamp", "bright", "a, warm lamp"),
        ("bright lamp", "bright", "lamp"),
        ("(bright lamp)", "bright", "(lamp)"),
        ("lamp (bright)", "bright", "lamp ()"),
        ("天气好", "气", "天好"),
    ],
)
def test_white_space_goes_with_a_word(text: str, word: str, expected: str) -> None:
    (passage,) = read_row({"text": text}, Columns()).passages
    assert passage.edited({passage.texts.index(word): ()}) == {"text": expected}


def test_words() -> None:
    assert texts_of("Don't pay 3.5 € for well-known e-mail, Ann's!") == [
        *("Don't", "pay", "3.5", "for", "well-known", "e-mail", "Ann's")
    ]
    assert texts_of("天气 good天") == ["天", "气"]  # a word of one script that touches another stays
    assert texts_of("one--two :) _three_") == ["one", "two", "three"]


def test_relations_and_answers_move() -> None:
    text = "The old company makes very quiet fans for the old baker."
    values = {
        "text": text,
        "head": {"start": 8, "end": 15},
        "tail": {"start": 33, "end": 37, "kind": "x"},
        "label": "y",
    }
    for key in range(40):
        new = edited(values, key)
        assert new["text"] != text
        assert new["text"][slice(new["head"]["start"], new["head"]["end"])] == "company"
        assert new["text"][slice(new["tail"]["start"], new["tail"]["end"])] == "fans"
        assert (new["tail"]["kind"], new["label"]) == ("x", "y")


ANSWERS = [
    {"answers": {"text": ["old mill", "the old mill"], "answer_start": [20, 16]}},
    {"answers": [{"text": "old mill", "answer_start": 20}]},
    {"answers": {"text": [], "answer_start": []}},
    {"answer": "old mill", "answer_start": "20"},
    {"answer": "old mill"},
    {"answer": "", "answer_start": ""},
]


@pytest.mark.parametrize("answers", ANSWERS)
def test_answers_stay_where_they_are_said_to_be(answers: dict[str, Any]) -> None:
    values = {"question": "Where do they bake bread?", "context": "They bake it in the old mill and eat it.", **answers}
    changed = set()
    for key in range(40):
        new = edited(values, key)
        changed |= {name for name in ("question", "context") if new[name] != values[name]}
        read_row(new, Columns())  # refuses answers that are not there
        given = new.get("answers")
        starts = given["answer_start"] if isinstance(given, dict) else [a["answer_start"] for a in given or []]
        starts = starts or ([new["answer_start"]] if new.get("answer") else [])
        assert all(new["context"][start:].startswith(("old mill", "the old mill")) for start in starts)
    assert changed == {"question", "context"}


def test_the_share_decides_how_many() -> None:
    text = " ".join(f"w{i}" for i in range(40))
    for share, count in ((0.01, 1), (0.1, 4), (0.5, 20)):
        assert len(edited({"text": text}, 3, "delete", share=share)["text"].split()) == 40 - count
        assert len(edited({"text": text}, 3, "insert", share=share)["text"].split()) == 40 + count


def test_typos_keep_the_first_letter_and_are_near() -> None:
    seen = {edited({"text": "kitchen"}, key, "typo")["text"] for key in range(200)}
    near = set()
    for i in range(1, 6):
        near |= {"kitchen"[:i] + "kitchen"[i + 1 :], "kitchen"[: i + 1] + "kitchen"[i:]}
        near.add("kitchen"[:i] + "kitchen"[i + 1] + "kitchen"[i] + "kitchen"[i + 2 :])
    assert seen <= near
    assert len(seen) > 10
    assert edited({"text": "the 3000 don't"}, 0, "typo") is None


def test_a_text_with_nothing_to_change() -> None:
    for text in ("lamp", "?!", "lamp lamp"):
        assert edited({"text": text}, 1, "swap") is None
    assert edited({"text": "lamp"}, 1, "swap", "delete", "insert") is None
    span = {"start": 0, "end": 12, "label": "x"}
    assert edited({"text": "kitchen lamp", "spans": [span]}, 1) is None


def test_a_row_does_not_depend_on_others() -> None:
    rows = [read_row({"text": f"turn on the lamp number {i}"}, Columns()) for i in range(6)]
    requests = [Request(row, Random(i).getrandbits(63)) for i, row in enumerate(rows)]
    method = WordEdits()
    assert method(requests) == [method([request])[0] for request in requests]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, r"share must be in \(0, 1\], got 0"),
        ({"operations": ["swop"]}, r"operations must be some of swap, delete, insert, typo, got \['swop'\]"),
        ({"operations": []}, "operations must be some of"),
    ],
)
def test_mistakes(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WordEdits(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sentence": "a"}, "has no 'text'; it has: sentence"),
        ({"text": 3}, "'text' holds int instead of text"),
        ({"text": "a b", "spans": [{"start": 0, "end": 9, "label": "x"}]}, "but the text has 3 characters"),
        ({"text": "a b", "head": {"start": 0, "end": 1}, "tail": {"start": 0, "end": 1}}, "overlap"),
        ({"text": "a b", "head": {"start": 0, "end": 1}, "tail": "b"}, "'head and tail' holds 'b'"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "has 1 tokens, but in 'tags' 2; give each token one tag"),
        ({"tokens": ["a"], "tags": ["Bx"]}, "'Bx' is no tag"),
        ({"question": "a?", "context": "b", "answers": {"text": ["c"], "answer_start": [0]}}, "does not stand at"),
    ],
)
def test_rows_that_can_not_be_used(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_row(values, Columns())
