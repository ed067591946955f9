"""What a terminal shows of an explanation: the text with colours, and scores that need none; and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from llm_arch.interpret import Explanation, TokenShare, Unread, WordShare, explain
from llm_arch.interpret.render import lines_of


def explanation(**changed: Any) -> Explanation:
    words = (
        WordShare("cold", "text", 0, 4, -0.5, (TokenShare("co", 0, 2, -0.75), TokenShare("##ld", 2, 4, 0.25))),
        WordShare("light", "text", 5, 10, 2.0),
        WordShare("on", "text", 11, 13, 0.01),
    )
    given = {
        "index": 4,
        "texts": {"text": "cold light on and on"},
        "target": "label b",
        "value": 3.0,
        "words": words,
        "special": 0.25,
        "baseline": 1.2,
        "method": "integrated_gradients",
        "settings": {"baseline": "mask", "steps": 8},
        "unread": (Unread("text", 14, 20),),
    }
    return Explanation(**{**given, **changed})


def test_what_is_shown() -> None:
    lines = [line.plain for line in lines_of(explanation())]
    assert lines == [
        "row 5: label b: 3.0000, 1.2000 for the baseline (integrated_gradients, baseline mask, steps 8; scores miss "
        "the difference by 2.22%)",
        "  text: cold light on and on",
        "    +2.0000  light",
        "    -0.5000  cold",
        "    +0.0100  on",
        "    +0.2500  special tokens",
        "  not read, too long: text, characters 14 to 20",
    ]
    short = [line.plain for line in lines_of(explanation(baseline=None, special=0.0, unread=()), most=1)]
    assert short[0] == "row 5: label b: 3.0000 (integrated_gradients, baseline mask, steps 8)"
    assert short[-1] == "    -0.4900  2 more words together"


def test_several_texts_are_told_apart() -> None:
    texts = {"question": "why", "context": "cold light on"}
    words = (WordShare("why", "question", 0, 3, 1.0), WordShare("cold", "context", 0, 4, 0.5))
    lines = [line.plain for line in lines_of(explanation(texts=texts, words=words, unread=()))]
    assert lines[1:5] == [
        "  question: why",
        "  context: cold light on",
        "    +1.0000  why (question)",
        "    +0.5000  cold (context)",
    ]


def test_colours_say_for_and_against() -> None:
    text = list(lines_of(explanation()))[1]
    spans = {text.plain[span.start : span.end]: span.style for span in text.spans}
    strong, weak = spans["light"].bgcolor.triplet, spans["cold"].bgcolor.triplet
    assert strong.blue > strong.red
    assert weak.red > weak.blue
    assert sum(weak) > sum(strong)  # nearer to white
    assert "on" not in spans
    console = Console(color_system="truecolor", force_terminal=True, width=200)
    with console.capture() as found:
        console.print(text)
    assert "\x1b[" in found.get()


def test_no_word_at_all() -> None:
    lines = [line.plain for line in lines_of(explanation(words=(), special=0.0, baseline=3.0, unread=()))]
    assert lines[1:] == ["  text: cold light on and on"]
    assert explanation(words=(), special=0.0, baseline=3.0).error == 0


def test_as_json() -> None:
    found = json.loads(json.dumps(explanation().to_dict()))
    assert found["error"] == pytest.approx(0.04 / 1.8)
    assert found["words"][0]["tokens"][1] == {"token": "##ld", "start": 2, "end": 4, "score": 0.25}
    assert found["unread"] == [{"text": "text", "start": 14, "end": 20}]
    assert explanation(baseline=None).to_dict()["error"] is None


def test_what_is_cut_is_told(make: Any, rows_of: Any) -> None:
    text = "turn on the bright lights of the kitchen please"
    (found,) = explain(make("classes", max_length=6), text, method="occlusion")
    assert [word.word for word in found.words] == ["turn", "on", "the", "bright"]
    assert found.unread == (Unread("text", 19, 47),)
    (end,) = explain(make("next", max_length=6), text, method="occlusion")  # reads the end, behind a first token
    assert end.unread == (Unread("text", 0, 18),)
    assert all(one.unread == () for kind in ("entities", "answers") for one in explain(make(kind), rows_of(kind)))


def test_pairs_and_choices_say_which_text(make: Any, rows_of: Any) -> None:
    (found,) = explain(
        make("classes", text_pair_column="other"), [{"text": "cold", "other": "a warm fire"}], method="occlusion"
    )
    assert [(word.text, word.word) for word in found.words] == [
        ("text", "cold"),
        ("other", "a"),
        ("other", "warm"),
        ("other", "fire"),
    ]
    found = explain(make("choices"), rows_of("choices"), target="1")[0]
    assert list(found.texts) == ["question", "choice 0", "choice 1", "choice 2"]
    of = {name: [word.score for word in found.words if word.text == name] for name in found.texts}
    assert of["choice 0"] == [0.0]  # another sequence, of which this number knows nothing
    assert all(of["choice 1"])
    assert all(of["question"])


def test_masks_are_no_words(make: Any, rows_of: Any) -> None:
    found = explain(make("masks"), rows_of("masks"))
    assert [[word.word for word in one.words] for one in found] == [["turn", "the", "light"], ["!"]]
    assert all(one.unread == () for one in found)
