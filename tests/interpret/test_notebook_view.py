"""What a notebook shows: coloured words, scores on hover, nothing of a text as markup; lists of them stay lists."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llm_arch.interpret import Explanation, Explanations, TokenShare, Unread, WordShare, explain


def explained(text: str = "cold light", **changed: Any) -> Explanation:
    half = len(text) // 2
    tokens = (TokenShare("co", 0, 2, -0.75), TokenShare("##ld", 2, 4, 0.25))
    words = (
        WordShare(text[:half], "text", 0, half, -0.5, tokens),
        WordShare(text[half:], "text", half, len(text), 2.0),
    )
    given = {"index": 0, "texts": {"text": text}, "target": "label b", "value": 3.0, "words": words, "special": 0.0}
    return Explanation(**{**given, "baseline": 1.5, "method": "shap", **changed})


class Read(HTMLParser):
    def __init__(self, shown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(shown)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_colours_and_scores() -> None:
    shown = explained()._repr_html_()
    found = re.findall(r'title="([^"]*)" style="[^"]*rgba\((\d+),\d+,(\d+),([\d.]+)\)">([^<]*)<', shown)
    assert [(title, text) for title, _, _, _, text in found] == [
        ("-0.5000\nco -0.7500\n##ld +0.2500", "cold "),
        ("+2.0000", "light"),
    ]
    (cold_red, cold_blue), (light_red, light_blue) = ((int(r), int(b)) for _, r, b, _, _ in found)
    assert cold_red > cold_blue
    assert light_blue > light_red
    assert [float(strength) for _, _, _, strength, _ in found] == [0.15, 0.6]
    assert "shap, baseline 1.5000, scores miss the difference by 0.00%" in Read(shown).text


def test_what_was_not_read() -> None:
    shown = explained("on", words=(), unread=(Unread("text", 0, 2),))._repr_html_()
    assert 'title="not read">on<' in shown
    assert "grey was not read" in shown


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_shown_and_none_is_markup(text: str, target: str) -> None:
    text, target = f"<img src=x onerror=run()>{text}", f"</div><script>{target}"
    read = Read(explained(text, target=target)._repr_html_())
    assert set(read.tags) <= {"div", "b", "small", "span", "br"}
    assert read.attributes <= {"style", "title"}
    assert target.replace("\n", "") in read.text.replace("\n", "")


def test_a_list_that_shows_itself(make: Any, rows_of: Any) -> None:
    found = explain(make(), rows_of("classes"), method="occlusion")
    assert isinstance(found, Explanations)
    assert found == [*found]
    assert found._repr_html_().count("<b>") == len(found) == 3
    many = Explanations([explained()] * 25)
    assert many._repr_html_().count("<b>") == 20
    assert many._repr_html_().endswith("<div>… and 5 more</div>")
    assert Explanations()._repr_html_() == ""
