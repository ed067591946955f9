"""Texts in pieces: nothing is lost, colours are shares of the largest score, and letters stay readable on them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.interpret import Explanation, Unread, WordShare
from llm_arch.interpret.pieces import AGAINST, FOR, STRONGEST, Piece, fault_of, pieces_of, printable


def explained(text: str, words: list[tuple[int, int, float]], unread: list[tuple[int, int]]) -> Explanation:
    shares = tuple(WordShare(text[a:b], "text", a, b, score) for a, b, score in words)
    cut = tuple(Unread("text", a, b) for a, b in unread)
    return Explanation(0, {"text": text}, "label", 1.0, shares, 0.0, None, "occlusion", {}, cut)


def test_words_gaps_and_what_was_not_read() -> None:
    one = explained("on  off, then dark", [(0, 2, 0.5), (4, 7, -2.0)], [(9, 18)])
    (pieces,) = pieces_of(one).values()
    on, off = one.words
    assert pieces == [
        Piece("on", on, 0.25),
        Piece("  "),
        Piece("off", off, -1.0),
        Piece(", "),
        Piece("then dark", read=False),
    ]


@given(st.text(max_size=20), st.lists(st.integers(0, 20), max_size=8), st.lists(st.integers(0, 20), max_size=4))
def test_together_they_are_the_text(text: str, places: list[int], cuts: list[int]) -> None:
    borders = sorted({min(place, len(text)) for place in places})
    words = [(a, b, float(a - 3)) for a, b in zip(borders[::2], borders[1::2], strict=False)]
    ends = sorted({min(place, len(text)) for place in cuts})
    unread = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=False)]
    (pieces,) = pieces_of(explained(text, words, unread)).values()
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.word.start for piece in pieces if piece.word] == [a for a, _, _ in words]
    assert all(-1 <= piece.share <= 1 for piece in pieces)
    at = 0
    for piece in pieces:
        if piece.word is None:
            inside = [any(a <= place < b for a, b in unread) for place in range(at, at + len(piece.text))]
            assert all(read is not piece.read for read in inside)
        at += len(piece.text)


def test_scores_that_are_no_numbers_have_no_colour() -> None:
    (pieces,) = pieces_of(explained("a b c", [(0, 1, float("nan")), (2, 3, 2.0), (4, 5, float("inf"))], [])).values()
    assert [piece.share for piece in pieces if piece.word] == [0.0, 1.0, 0.0]
    (pieces,) = pieces_of(explained("a b", [(0, 1, 0.0)], [])).values()
    assert pieces[0].share == 0.0


def test_in_words() -> None:
    one = explained("a", [(0, 1, 1.0)], [])
    assert fault_of(one) == ""
    assert fault_of(Explanation(0, {"text": "a"}, "", 3.0, one.words, 0.0, 1.0, "shap")) == (
        "scores miss the difference by 50.00%"
    )
    assert printable("a\ud800b\U0001f600") == "a\ufffdb\U0001f600"


def contrast(ink: tuple[float, ...], paper: tuple[float, ...]) -> float:
    """As WCAG 2 defines it."""

    def luminance(rgb: tuple[float, ...]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    light, dark = sorted([luminance(ink), luminance(paper)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def css_colours(name: str) -> list[tuple[int, ...]]:
    """For light and for dark pages."""
    style = (files("llm_arch.interpret.page") / "page.css").read_text(encoding="utf-8")
    (both,) = re.findall(rf"--{name}: light-dark\(#(\w+), #(\w+)\)", style)
    return [tuple(int(one[i : i + 2], 16) for i in (0, 2, 4)) for one in both]


def test_contrast_is_that_of_the_formula() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1])
def test_letters_are_readable(theme: int) -> None:
    panel = css_colours("panel")[theme]
    for name in ("ink", "soft", "link"):
        assert contrast(css_colours(name)[theme], panel) >= 4.5
        assert contrast(css_colours(name)[theme], css_colours("paper")[theme]) >= 4.5
    for colour in (FOR, AGAINST, (140, 105, 225)):
        for share in (0.25, 0.5, 0.75, 1.0):
            mixed = tuple(p + (c - p) * STRONGEST * share for p, c in zip(panel, colour, strict=True))
            assert contrast(css_colours("ink")[theme], mixed) >= 4.5, (colour, share)
