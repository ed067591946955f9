"""Words of a text, against a walk over its characters by their Unicode names."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.words import Word, cut, joined, split

ALONE = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI CHARACTER", "LAO", "KHMER LETTER", "MYANMAR LETTER")
LETTERS = "aZ é5ß_-.,'\"\n\u0301ไทยัน้北京カなລາວកខမန हिन्दी می\u200cروم 😀👍🏽\u200d\u07ca\x07\u200b한국½²"
TEXTS = st.text(st.sampled_from(LETTERS) | st.characters(exclude_categories=["Cs"]), max_size=30)


def shown(text: str) -> list[str]:
    return [text[start:end] for start, end in split(text)]


def by_walking(text: str) -> list[Word]:
    """A character at a time: a mark goes on with what is before it, a letter or digit with a run of such."""
    found: list[Word] = []
    running = False
    for i, char in enumerate(text):
        if char.isspace():
            running = False
            continue
        mark = unicodedata.category(char).startswith("M") or char in "\u200c\u200d"
        touches = bool(found) and found[-1][1] == i
        if touches and mark:
            found[-1] = found[-1][0], i + 1
            continue
        alone = unicodedata.name(char, "").startswith(ALONE)
        letter = char.isalnum() and not alone
        if touches and letter and running:
            found[-1] = found[-1][0], i + 1
        else:
            found.append((i, i + 1))
        running = letter
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Turn on the light!", ["Turn", "on", "the", "light", "!"]),
        ("it's 21.5°C", ["it", "'", "s", "21", ".", "5", "°", "C"]),
        ("snake_case  e-mail\t@you", ["snake", "_", "case", "e", "-", "mail", "@", "you"]),
        ("打开卧室的灯", list("打开卧室的灯")),
        ("把HomePod音量调到30%", ["把", "HomePod", "音", "量", "调", "到", "30", "%"]),
        ("エアコンをつけて", list("エアコンをつけて")),
        ("เปิดไฟ", ["เ", "ปิ", "ด", "ไ", "ฟ"]),
        ("불을 켜 줘", ["불을", "켜", "줘"]),
        ("रसोई की बत्ती", ["रसोई", "की", "बत्ती"]),
        ("cafe\u0301 می\u200cروم", ["cafe\u0301", "می\u200cروم"]),
        ("👍🏽 ok", ["👍", "🏽", "ok"]),
        ("\u0301x", ["\u0301", "x"]),
        (" \n ", []),
    ],
)
def test_split(text: str, words: list[str]) -> None:
    assert shown(text) == words


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(LETTERS), max_size=30))
def test_split_by_walking(text: str) -> None:
    assert split(text) == by_walking(text)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_every_character_but_white_space_is_in_one_word(text: str) -> None:
    words = split(text)
    inside = [i for start, end in words for i in range(start, end)]
    assert inside == [i for i, char in enumerate(text) if not char.isspace()]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 30), max_size=6))
def test_cut(text: str, borders: list[int]) -> None:
    words = split(text)
    # A word is the characters between two places where one begins or ends, or a border is.
    edges = {edge for word in words for edge in word} | set(borders)
    found: list[Word] = []
    for start, end in words:
        inner = sorted(edge for edge in edges if start <= edge <= end)
        found += zip(inner, inner[1:], strict=False)
    assert cut(words, borders) == found


@given(st.lists(st.text("a b", min_size=1, max_size=4), max_size=6))
def test_joined(tokens: list[str]) -> None:
    text = " ".join(tokens)
    found = joined(tokens)
    assert [text[start:end] for start, end in found] == tokens
    assert all(after[0] == before[1] + 1 for before, after in zip(found, found[1:], strict=False))
