"""Explanations in notebooks: coloured words, whose scores are shown where a pointer rests on them."""

from __future__ import annotations

from html import escape

from llm_arch.interpret.explanation import Explanation
from llm_arch.interpret.pieces import AGAINST, FOR, STRONGEST, Piece, fault_of, pieces_of, printable


def html_of(explanation: Explanation) -> str:
    """A piece of HTML that needs no style of its own, readable on light and on dark pages.

    Args:
        explanation: of a row.
    """
    baseline = "" if explanation.baseline is None else f"baseline {explanation.baseline:.4f}"
    unread = "grey was not read" if explanation.unread else ""
    facts = ", ".join(filter(None, [explanation.method, baseline, fault_of(explanation), unread]))
    lines = [
        f"<b>{_escaped(explanation.target)}</b>: {explanation.value:.4f} <small>({_escaped(facts)})</small>",
        *(_line(name, pieces) for name, pieces in pieces_of(explanation).items()),
    ]
    return (
        f'<div style="line-height:1.8;overflow-wrap:anywhere">{"".join(f"<div>{line}</div>" for line in lines)}</div>'
    )


def _line(name: str, pieces: list[Piece]) -> str:
    return f'<small style="opacity:.7">{_escaped(name)}</small> {"".join(map(_piece, pieces))}'


def _piece(piece: Piece) -> str:
    text = _escaped(piece.text).replace("\n", "<br>")
    if piece.word is None:
        return text if piece.read else f'<span style="opacity:.45" title="not read">{text}</span>'
    red, green, blue = FOR if piece.share > 0 else AGAINST
    strength = STRONGEST * abs(piece.share)
    tokens = "".join(f"\n{token.token} {token.score:+.4f}" for token in piece.word.tokens if len(piece.word.tokens) > 1)
    return (
        f'<span title="{_escaped(f"{piece.word.score:+.4f}{tokens}")}" style="border-radius:3px;padding:1px 2px;'
        f'background:rgba({red},{green},{blue},{strength:.3f})">{text}</span>'
    )


def _escaped(text: str) -> str:
    return escape(printable(text))
