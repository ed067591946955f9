"""The page as a file: it shows every text as it is, runs none, needs nothing from elsewhere, and holds the numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.interpret import Explanation, Inside, TokenShare, Unread, WordShare, explain
from llm_arch.interpret.faithfulness import Faithfulness
from llm_arch.interpret.faithfulness import Tested as Beside
from llm_arch.interpret.inside import Lens, LensLayer, LensPosition, LensToken, TokenSequence
from llm_arch.interpret.page import page_of
from llm_arch.interpret.page.inside_data import data_of
from llm_arch.interpret.page.safe import in_html, in_json

HOSTILE = ["</script><script>run()</script>", "<!--", "\"'><img src=x onerror=run()>", "&amp;&lt;", "]]>", "\r\n\0"]
HOSTILE += ["{{7*7}} ${run()} $title", "\u2028\u2029", "\U0001f600 é", "</ScRiPt >", "<svg/onload=run()>"]
texts = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=6)), min_size=1, max_size=3).map("".join)


def explained(text: str = "cold light", **changed: Any) -> Explanation:
    half = len(text) // 2
    words = (
        WordShare(text[:half], "text", 0, half, -0.5, (TokenShare(text[:half], 0, half, -0.5),)),
        WordShare(text[half:], "text", half, len(text), 2.0),
    )
    given = {"index": 0, "texts": {"text": text}, "target": "label b", "value": 3.0, "words": words, "special": 0.25}
    return Explanation(**{**given, "baseline": 1.2, "method": "shap", "settings": {"orders": 8}, **changed})


class Read(HTMLParser):
    """Elements with their attributes, and the text in each kind of element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        kind = dict(attrs).get("class") or dict(attrs).get("type") or tag
        if tag not in ("meta", "link", "input"):
            self.open.append(kind)
            self.texts.setdefault(kind, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    @property
    def data(self) -> list[Any]:
        return [json.loads(one) for one in self.texts["application/json"]]


def test_what_it_shows() -> None:
    cut = (Unread("text", 20, 30),)
    scores = Faithfulness(0.5, 0.1, 0.4, 0.2, 0.3)
    two = [
        explained(unread=cut, faithfulness=Beside(scores, scores)),
        explained("on", index=1, baseline=None, special=0.0, predicted="label c"),
    ]
    read = Read(page_of(two, about={"model": "runs/a & b", "head": "Tags"}))
    assert read.texts["target"] == ["label b", "label b"]
    assert read.texts["value"] == ["3.0000", "3.0000"]
    assert read.texts["text"] == ["cold light", "on"]
    assert read.texts["dd"][:4] == ["runs/a & b", "Tags", "shap", "2"]
    assert read.texts["li"] == [
        "1.2000 for the baseline",
        "scores miss the difference by 2.78%",
        "special tokens +0.2500",
        "shap, orders 8",
        "without the highest fifth of the words it loses 0.500, without random ones 0.500",
        "not read, too long: text, characters 20 to 30",
        "predicted: label c",
        "shap, orders 8",
    ]
    first, second = read.data
    assert first["texts"] == [[["cold ", -0.25, -0.5, [["cold ", -0.5]]], ["light", 1.0, 2.0, []]]]
    assert first["names"] == ["text"]
    assert "inside" not in second


@settings(max_examples=40)
@given(texts, texts, texts)
def test_any_text_is_shown_and_none_is_markup(text: str, target: str, name: str) -> None:
    word = WordShare(text, name, 0, len(text), 1.0, (TokenShare(target, 0, len(text), 1.0),))
    inside = Inside(0, (TokenSequence(name, (text, target), (False, True)),))
    given = explained("x", texts={name: text}, target=target, words=(word,), method=f"m{text}", settings={name: target})
    plain = Read(page_of([explained("x")], [Inside(0, (TokenSequence("", ("a",), (False,)),))], {"model": "m"}))
    read = Read(page_of([given], [inside], {"model": f"m{name}"}))
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert [[*attributes] for _, attributes in read.elements] == [[*attributes] for _, attributes in plain.elements]
    assert read.texts["text"] == [text.replace("\0", "\ufffd")]
    assert read.texts["target"] == [target.replace("\0", "\ufffd")]
    (data,) = read.data
    pieces = data["texts"][0]
    assert "".join(piece[0] for piece in pieces) == text
    assert data["inside"]["sequences"][0]["tokens"] == [text, target]


@given(texts)
def test_parts_hold_nothing_that_ends_them(text: str) -> None:
    assert not set(in_html(text)) & set("<>\"'\r\0")
    assert not set(in_json({text: [text]})) & set("<>&\r\0")
    assert json.loads(in_json({text: [text]})) == {text: [text]}


def test_numbers_that_are_none_and_halves_of_characters() -> None:
    assert json.loads(in_json([float("nan"), float("inf"), 1 / 3, True, None])) == [None, None, 0.333333, True, None]
    page = page_of([explained("a\ud800b", value=float("nan"))])
    assert page.encode()  # can be written
    assert Read(page).texts["value"] == ["nan"]


def test_nothing_else_may_be_loaded_or_run() -> None:
    page = page_of([explained(text) for text in HOSTILE], about={"model": "m"})
    read = Read(page)
    (policy,) = (a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    linked = [a.get(name) for _, a in read.elements for name in ("src", "href") if name in a]
    assert all(one is not None and one.startswith(("#row-", "data:")) for one in linked)
    assert not re.search(r"https?:|@import|url\(", page)
    assert not any(name.startswith("on") or name == "style" for _, a in read.elements for name in a)


def attention(*shape: int) -> np.ndarray:
    drawn = np.random.default_rng(0).random(shape).astype(np.float32) ** 8
    return drawn / drawn.sum(-1, keepdims=True)


def inside(index: int = 0) -> Inside:
    layers = tuple(LensLayer((LensToken("b", 0.75), LensToken("a", 0.125)), 0.5) for _ in range(3))
    return Inside(
        index,
        (TokenSequence("text", ("[CLS]", "a", "b"), (True, False, False), (attention(2, 3, 3), attention(1, 3, 3))),),
        (np.array([0.5, 2.0], np.float32), np.array([1.0], np.float32)),
        Lens("the model's own head", (LensPosition(0, 1, layers), LensPosition(0, 2, layers))),
        "label b",
    )


def test_attention_is_kept_within_a_step() -> None:
    given = inside()
    (found,) = data_of(given)["sequences"]
    steps = np.frombuffer(zlib.decompress(base64.b64decode(found["maps"])), np.uint8)
    assert given.sequences[0].attention is not None
    whole = np.concatenate([layer.reshape(-1) for layer in given.sequences[0].attention])
    largest = np.repeat(np.concatenate(found["maxima"]), 9)
    assert np.abs(steps * largest / 255 - whole).max() <= largest.max() / 255 / 2 + 1e-7
    assert found["special"] == [1, 0, 0]
    assert data_of(given)["importance"] == [[0.5, 2.0], [1.0]]


def test_a_layer_without_heads() -> None:
    empty = TokenSequence("text", ("a", "b"), (False, False), (np.zeros((0, 2, 2), np.float32), attention(1, 2, 2)))
    (found,) = data_of(Inside(0, (empty,)))["sequences"]
    assert [len(layer) for layer in found["maxima"]] == [0, 1]
    assert len(zlib.decompress(base64.b64decode(found["maps"]))) == 4


def test_a_page_with_attention_is_small() -> None:
    maps = tuple(attention(12, 64, 64) for _ in range(12))
    tokens = TokenSequence("text", ("a",) * 64, (False,) * 64, maps)
    assert len(data_of(Inside(0, (tokens,)))["sequences"][0]["maps"]) < 12 * 12 * 64 * 64  # of 4 bytes as they were


def test_what_each_layer_would_say() -> None:
    lens = data_of(inside())["lens"]
    assert lens["vocabulary"] == ["b", "a"]
    assert lens["positions"][1]["place"] == 2
    assert lens["positions"][1]["layers"][0] == {"tokens": [[0, 0.75], [1, 0.125]], "divergence": 0.5}


def test_rows_meet_what_is_inside_them() -> None:
    some = [explained(index=index) for index in (0, 2, 3)]
    data = Read(page_of(some, iter([inside(1), inside(2)]))).data
    assert [("inside" in one) for one in data] == [False, True, False]


def test_a_row_by_two_methods_stands_twice() -> None:
    read = Read(page_of([explained(), explained(method="occlusion")]))
    assert [a["id"] for tag, a in read.elements if tag == "article"] == ["row-1", "row-2"]
    assert read.texts["a"] == ["1", "1"]
    assert "shap, occlusion" in read.texts["dd"]


def test_no_rows() -> None:
    assert Read(page_of([])).texts["p"][-1] == "no rows"


@pytest.mark.parametrize("kind", ["entities", "answers", "choices"])
def test_rows_of_a_model(make: Any, rows_of: Any, kind: str) -> None:
    found = explain(make(kind), rows_of(kind), method="occlusion")
    read = Read(page_of(found))
    assert read.texts["text"] == [text for one in found for text in one.texts.values()]
    assert [["".join(p[0] for p in pieces) for pieces in data["texts"]] for data in read.data] == [
        [*one.texts.values()] for one in found
    ]
