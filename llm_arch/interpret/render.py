"""Explanations for a terminal: coloured words, with their scores beside, so that colours are not needed."""

from __future__ import annotations

from collections.abc import Iterator

from rich.color import Color
from rich.style import Style
from rich.text import Text

from llm_arch.interpret.explanation import Explanation, WordShare
from llm_arch.interpret.pieces import AGAINST, FOR

_PAPER = (255, 255, 255)
_FAINT = 0.05  # words below this share of the largest score have no colour


def lines_of(explanation: Explanation, most: int = 10) -> Iterator[Text]:
    """The lines to print.

    Args:
        explanation: of a row.
        most: words whose scores are listed, those with the largest first.
    """
    yield Text(_headline(explanation), style="bold")
    largest = max((abs(word.score) for word in explanation.words), default=0.0)
    for name, text in explanation.texts.items():
        shown = Text(text)
        for word in explanation.words:
            if word.text == name and abs(word.score) > _FAINT * largest:
                shown.stylize(_style(word.score / largest), word.start, word.end)
        yield Text(f"  {name}: ") + shown
    ranked = sorted(explanation.words, key=lambda word: -abs(word.score))
    for word in ranked[:most]:
        yield Text(f"  {word.score:+9.4f}  ") + _named(word, len(explanation.texts) > 1)
    if rest := ranked[most:]:
        yield Text(f"  {sum(word.score for word in rest):+9.4f}  {len(rest)} more words together")
    if explanation.special:
        yield Text(f"  {explanation.special:+9.4f}  special tokens")
    for unread in explanation.unread:
        yield Text(f"  not read, too long: {unread.text}, characters {unread.start} to {unread.end}", style="italic")


def _headline(explanation: Explanation) -> str:
    settings = [f"{name} {value}" for name, value in explanation.settings.items()]
    baseline = "" if explanation.baseline is None else f", {explanation.baseline:.4f} for the baseline"
    error = "" if explanation.error is None else f"; scores miss the difference by {explanation.error:.2%}"
    how = ", ".join([explanation.method, *settings])
    return f"row {explanation.index + 1}: {explanation.target}: {explanation.value:.4f}{baseline} ({how}{error})"


def _named(word: WordShare, several: bool) -> Text:
    return Text(f"{word.word} ({word.text})" if several else word.word)


def _style(share: float) -> Style:
    """Dark letters on a colour that is the stronger the further a score, in [-1, 1], is from 0."""
    colour, strength = (FOR if share > 0 else AGAINST), abs(share)
    mixed = (round(p + (c - p) * strength) for p, c in zip(_PAPER, colour, strict=True))
    return Style(color=Color.from_rgb(0, 0, 0), bgcolor=Color.from_rgb(*mixed))
