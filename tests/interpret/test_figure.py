"""The picture: an image in colours, of any text, in as many lines as it takes."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_arch.interpret import Explanation, Unread, WordShare, explain
from llm_arch.interpret.figure import figure_of, png_of
from llm_arch.interpret.pieces import AGAINST, FOR, STRONGEST
from llm_arch.types import UserError


def explained(text: str, scores: list[float], **changed: Any) -> Explanation:
    words, at = [], 0
    for word, score in zip(text.split(), scores, strict=False):
        at = text.index(word, at)
        words.append(WordShare(word, "text", at, at + len(word), score))
        at += len(word)
    given = {"index": 0, "texts": {"text": text}, "target": "label $b_1$", "value": 3.0, "words": tuple(words)}
    return Explanation(**{**given, "special": 0.0, "baseline": None, "method": "shap", **changed})


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def has(image: np.ndarray, colour: tuple[int, int, int], strength: float) -> bool:
    wanted = [255 + (c - 255) * strength for c in colour]
    return bool((np.abs(image.reshape(-1, 3) - wanted).max(1) <= 1).mean() > 1e-3)


def test_words_have_their_colours() -> None:
    image = pixels(png_of(explained("cold light on", [-1.0, 2.0, 0.0])))
    assert has(image, FOR, STRONGEST)
    assert has(image, AGAINST, STRONGEST / 2)
    assert image.shape[1] == 1400
    assert (image[0, 0] == 255).all()
    assert (image.min(axis=2) < 60).sum() > 500  # letters


def test_long_texts_take_more_lines_and_none_runs_out_of_the_picture() -> None:
    short, long = (pixels(png_of(explained("light " * count, [1.0] * count))) for count in (5, 60))
    assert len(long) > len(short) + 3 * 30
    unbroken = pixels(png_of(explained("x" * 400, [1.0])))
    for image in (long, unbroken):
        assert (image[:, -20:] == 255).all()
    assert len(unbroken) > len(short)


def test_several_rows_and_texts_below_each_other() -> None:
    one = explained("cold light", [-1.0, 2.0])
    pair = explained("cold light", [-1.0, 2.0], texts={"text": "cold light", "other": "warm\nfire"})
    heights = [len(pixels(png_of(some))) for some in (one, pair, [one, pair])]
    assert heights == sorted(heights)
    assert len(set(heights)) == 3


def test_any_characters() -> None:
    # Mathematics of matplotlib, a new line, what no font here may have, and half a character.
    text = "$x^2 {a}$ \\frac \ttab\nline 中文 \U0001f600 \ud800 a\0b"
    assert pixels(png_of(explained(text, [1.0, -1.0, 0.5, 0.1, 0.2, 0.3, 0.4, 1.0, 1.0]))).size
    assert pixels(png_of(explained("中文", [1.0], target="中"))).size


def test_what_was_not_read_is_grey() -> None:
    image = pixels(png_of(explained("on of", [], unread=(Unread("text", 0, 5),))))
    assert not has(image[:100], FOR, STRONGEST)


def test_what_can_not_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^there is no explanation to draw$"):
        png_of([])
    with pytest.raises(UserError, match=r"inches long and may have 100; draw fewer or shorter rows, or take a page"):
        figure_of(explained("a\n" * 2000, []))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib: pip install 'llm_arch\[plots\]'"):
        png_of(explained("a", [1.0]))


def test_rows_of_a_model(make: Any, rows_of: Any) -> None:
    assert len(np.unique(pixels(png_of(explain(make(), rows_of("classes"))))[:, :, 0])) > 20
