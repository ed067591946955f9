"""A row of the page: what can be read as it stands, and the numbers that are drawn once it is looked at."""

from __future__ import annotations

from typing import Any

from llm_arch.interpret.explanation import Explanation
from llm_arch.interpret.inside import Inside
from llm_arch.interpret.page.inside_data import data_of
from llm_arch.interpret.page.safe import in_html, in_json
from llm_arch.interpret.pieces import Piece, fault_of, pieces_of


def row_of(place: int, explanation: Explanation, inside: Inside | None = None) -> str:
    """An `article` element.

    Args:
        place: on the page, from 1, where a row may stand several times, such as by several methods.
        explanation: of a row.
        inside: what happens inside the model there; None to leave it out.
    """
    number = explanation.index + 1
    pieces = pieces_of(explanation)
    texts = "".join(
        f'<div class="line"><dt>{in_html(name)}</dt><dd dir="auto" class="text">{in_html(text)}</dd></div>'
        for name, text in explanation.texts.items()
    )
    facts = "".join(f"<li>{in_html(fact)}</li>" for fact in _facts(explanation))
    data: dict[str, Any] = {
        "names": list(pieces),
        "texts": [[_packed(piece) for piece in some] for some in pieces.values()],
    }
    if inside is not None:
        data["inside"] = data_of(inside)
    return (
        f'<article class="row" id="row-{place}" aria-labelledby="target-{place}">'
        f'<h2><a href="#row-{place}" aria-label="row {number}">{number}</a>'
        f'<span class="target" id="target-{place}">{in_html(explanation.target)}</span>'
        f'<span class="value">{explanation.value:.4f}</span></h2>'
        f'<dl>{texts}</dl><ul class="facts">{facts}</ul>'
        f'<div class="more"></div><script type="application/json">{in_json(data)}</script></article>\n'
    )


def _facts(explanation: Explanation) -> list[str]:
    baseline = "" if explanation.baseline is None else f"{explanation.baseline:.4f} for the baseline"
    special = f"special tokens {explanation.special:+.4f}" if explanation.special else ""
    how = ", ".join([explanation.method, *(f"{name} {value}" for name, value in explanation.settings.items())])
    other = explanation.predicted if explanation.predicted != explanation.target else ""
    tested = explanation.faithfulness
    faithful = tested and (
        f"without the highest fifth of the words it loses {tested.own.comprehensiveness:.3f}, "
        f"without random ones {tested.random.comprehensiveness:.3f}"
    )
    unread = [f"not read, too long: {o.text}, characters {o.start} to {o.end}" for o in explanation.unread]
    found = (other and f"predicted: {other}", baseline, fault_of(explanation), special, how, faithful, *unread)
    return [fact for fact in found if fact]


def _packed(piece: Piece) -> list[Any]:
    """Characters alone, or with null where they were not read, or with share, score and tokens of a word."""
    if piece.word is None:
        return [piece.text] if piece.read else [piece.text, None]
    tokens = [[token.token, token.score] for token in piece.word.tokens]
    return [piece.text, piece.share, piece.word.score, tokens]
