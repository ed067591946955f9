"""Tokens as words: each token in exactly one, whatever tokenizers do with spaces, accents and emoji."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.collate import make_batch
from llm_arch.data.origins import NOWHERE, Origins
from llm_arch.data.words import split
from llm_arch.interpret.rows import Rows
from llm_arch.interpret.words import tokens_of, unread, words_of
from llm_arch.types import Batch, UserError


def words(text: str, tokens: list[tuple[int, int]]) -> list[tuple[str, tuple[int, ...]]]:
    origins = Origins({"text": text}, [NOWHERE, *((0, *token) for token in tokens), NOWHERE])
    return [(text[place[1] : place[2]], shown) for place, shown in words_of(origins)]


def test_subwords_and_spaces() -> None:
    assert words("un do it", [(0, 2), (2, 5), (5, 8)]) == [("un", (1,)), ("do", (2,)), ("it", (3,))]
    assert words("undo it", [(0, 2), (2, 4), (4, 7)]) == [("undo", (1, 2)), ("it", (3,))]
    assert words("undo  it ", [(0, 4), (4, 5), (5, 8), (8, 9)]) == [("undo", (1,)), ("it", (2, 3, 4))]


def test_words_that_share_a_token_are_one() -> None:
    assert words("don't ... go", [(0, 3), (3, 5), (5, 9), (9, 12)]) == [
        ("don", (1,)),
        ("'t", (2,)),
        ("...", (3,)),
        ("go", (4,)),
    ]
    assert words("日本語", [(0, 2), (2, 3)]) == [("日本", (1,)), ("語", (2,))]
    assert words("🙂!", [(0, 1), (0, 1), (0, 1), (1, 2)]) == [("🙂", (1, 2, 3)), ("!", (4,))]


def test_windows_and_several_texts() -> None:
    origins = Origins({"one": "a b", "two": "c"}, [(0, 0, 1), (0, 2, 3), (1, 0, 1), NOWHERE, (0, 2, 3), (1, 0, 1)])
    wanted = [((0, 0, 1), (0,)), ((0, 2, 3), (1, 4)), ((1, 0, 1), (2, 5))]
    assert [tuple(unit) for unit in words_of(origins)] == wanted
    assert [tuple(unit) for unit in tokens_of(origins)] == wanted


def test_what_was_not_read() -> None:
    text = "one two three four"
    origins = Origins({"text": text}, [(0, 4, 7), (0, 8, 10), (0, 10, 13)])
    assert unread(origins, words_of(origins)) == [(0, 0, 3), (0, 14, 18)]
    assert unread(Origins({"text": text}, []), []) == [(0, 0, 18)]


@given(st.text(max_size=30), st.data())
@settings(max_examples=200, deadline=None)
def test_every_token_is_in_one_word(text: str, data: st.DataObject) -> None:
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)) | {0, len(text)})
    places = [(0, start, end) for start, end in zip(borders, borders[1:], strict=False) if end > start]
    origins = Origins({"text": text}, places)
    found = words_of(origins)
    if not split(text):
        assert found == []
        return
    assert sorted(token for _, tokens in found for token in tokens) == list(range(len(places)))
    for (_, start, end), (_, later, _) in zip([u.place for u in found], [u.place for u in found][1:], strict=False):
        assert start < end <= later
    assert unread(origins, found) == []  # all characters were shown


# Rows that are taken


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]} | {"index": [*range(len(rows))]}


ROWS = [
    {"input_ids": [1, 2, 3, 4, 5], "windows": [3, 2], "word_token": [1, 3], "word_start": [0, 2], "word_end": [1, 3]},
    {"input_ids": [6], "windows": None, "word_token": [], "word_start": [], "word_end": []},
    {"input_ids": [7, 8, 9], "windows": None, "word_token": [2], "word_start": [4], "word_end": [7]},
]
ROWS = [row | {"token_type_ids": [i % 2 for i in row["input_ids"]]} for row in ROWS]


def same(one: Batch, other: Batch) -> None:
    for name in ("input_ids", "position_ids", "segments", "starts", "lengths", "token_type_ids", "row_of_sequence"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.rows == other.rows
    assert (one.words is None) == (other.words is None)
    for name in ("token", "row", "start", "end") if one.words is not None else ():
        assert torch.equal(getattr(one.words, name), getattr(other.words, name)), name


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_taken_rows_are_as_if_collated(chosen: list[int]) -> None:
    rows = Rows(make_batch(columns_of(ROWS)))
    taken = rows.take(chosen)
    same(taken.batch, make_batch(columns_of([ROWS[i] for i in chosen])))
    assert torch.equal(rows.batch.input_ids[taken.token_K], taken.batch.input_ids)
    assert taken.row_K.tolist() == [n for n, i in enumerate(chosen) for _ in ROWS[i]["input_ids"]]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_taken_without_some_tokens(chosen: list[int], data: st.DataObject) -> None:
    plain = [{k: row[k] for k in ("input_ids", "token_type_ids", "windows")} for row in ROWS]
    rows = Rows(make_batch(columns_of(plain)))
    kept, left = [], []
    for i in chosen:
        parts = plain[i]["windows"] or [len(plain[i]["input_ids"])]
        flags = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)) for n in parts]
        keep = [flag for part in flags for flag in part]
        own = {
            k: [v for v, flag in zip(plain[i][k], keep, strict=True) if flag] for k in ("input_ids", "token_type_ids")
        }
        left.append(own | {"windows": [sum(part) for part in flags]})
        kept += keep
    same(rows.take(chosen, torch.tensor(kept)).batch, make_batch(columns_of(left)))


def test_where_a_language_model_is_asked_moves_along() -> None:
    plain = [{k: row[k] for k in ("input_ids", "token_type_ids")} for row in ROWS]
    batch = make_batch(
        columns_of(plain), labels={"positions": torch.tensor([4, 5, 8]), "targets": torch.tensor([1, 2, 3])}
    )
    rows = Rows(batch)
    taken = rows.take([2, 0, 2]).batch
    assert taken.labels["positions"].tolist() == [2, 7, 10]
    assert taken.labels["targets"].tolist() == [3, 1, 3]
    keep = torch.tensor([True, True, False, True, True, True, False, False, True, False, False])
    assert rows.take([2, 0, 2], keep).batch.labels["positions"].tolist() == [1, 4, 5]


def test_what_can_not_go() -> None:
    rows = Rows(make_batch(columns_of(ROWS)))
    with pytest.raises(UserError, match="this model says something of each word, so none can be taken out"):
        rows.take([1], torch.tensor([True]))
    rows = Rows(make_batch(columns_of([{k: row[k] for k in ("input_ids", "token_type_ids")} for row in ROWS])))
    with pytest.raises(UserError, match="without its words a text has no tokens left for this model"):
        rows.take([1], torch.tensor([False]))


@given(st.lists(st.integers(0, 2), max_size=9), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_chunks_keep_to_their_tokens(chosen: list[int], tokens: int) -> None:
    rows = Rows(make_batch(columns_of(ROWS)))
    parts = [chosen[part] for part in rows.chunks(chosen, tokens)]
    assert [row for part in parts for row in part] == chosen
    assert all(len(part) == 1 or sum(rows.lengths[row] for row in part) <= tokens for part in parts)
