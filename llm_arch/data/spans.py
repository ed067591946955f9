"""Labelled spans of a text, and the words that carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from llm_arch.data.windows import first_tokens
from llm_arch.data.words import Word, cut, split
from llm_arch.tags import Entity


def span_fault(spans: Any, text: str, column: str) -> str | None:
    """What is wrong with the spans of a text, as the end of a sentence, or None."""
    if not isinstance(spans, list):
        return f"{column!r} holds {type(spans).__name__} instead of a list of spans; fix the row"
    for span in spans:
        if not (isinstance(span, Mapping) and {"start", "end", "label"} <= span.keys()):
            return f'{column!r} holds {span!r}; write spans as {{"start": 0, "end": 3, "label": "person"}}'
        start, end, label = (span[name] for name in ("start", "end", "label"))
        if any(type(place) is not int for place in (start, end)):
            return f"{column!r} has a span from {start!r} to {end!r}; start and end are whole numbers"
        if not 0 <= start < end <= len(text):
            return (
                f"{column!r} has a span from {start} to {end}, but the text has {len(text)} characters, end exclusive"
            )
        if not (isinstance(label, str) and label.strip()):
            return f"{column!r} has a span with the label {label!r}; name the type of the entity"
        if not text[start:end].strip():
            return f"{column!r} has a span from {start} to {end} that holds white space alone; fix the row"
    for one, other in pairwise(sorted(spans, key=lambda span: (span["start"], span["end"]))):
        if other["start"] < one["end"]:
            shown = [f"{span['label']} ({span['start']} to {span['end']})" for span in (one, other)]
            return f"{column!r} has spans that overlap: {' and '.join(shown)}; keep one of them"
    return None


class TextWords(NamedTuple):
    """The words of a text.

    Attributes:
        words: where they lie, in order.
        tokens: the first token of each, counted within the content of the row.
        entities: the spans, in words.
        inside: whether a span begins or ends inside of what would otherwise be one word.
    """

    words: list[Word]
    tokens: list[int]
    entities: list[Entity]
    inside: bool


def text_words(text: str, spans: Sequence[Mapping[str, Any]], offsets: Sequence[Word]) -> TextWords:
    """The words of a text, none of which has the border of a span inside it.

    Words that share a token are joined, unless one is of a span and the other is not.

    Args:
        text: the text.
        spans: spans without fault.
        offsets: first character and end of each token.
    """
    whole = split(text)
    words = cut(whole, (span[end] for span in spans for end in ("start", "end"))) if spans else whole
    inside = len(words) > len(whole)
    tokens = first_tokens(words, offsets)
    order = sorted(spans, key=lambda span: int(span["start"]))
    found: list[Word] = []
    places: list[int] = []
    owners: list[int] = []  # the span of each word, or -1
    next_span = 0
    for (start, end), token in zip(words, tokens, strict=True):
        while next_span < len(order) and order[next_span]["end"] <= start:
            next_span += 1
        owner = next_span if next_span < len(order) and order[next_span]["start"] < end else -1
        first, last = offsets[token] if offsets else (0, 0)
        shared = bool(places) and places[-1] == token and first < found[-1][1] and last > start
        if shared and owners[-1] == owner:
            found[-1] = found[-1][0], end
            continue
        inside |= shared
        found.append((start, end))
        places.append(token)
        owners.append(owner)
    entities = []
    for i, span in enumerate(order):
        begun = owners.index(i)
        entities.append(Entity(begun, begun + owners.count(i), str(span["label"]).strip()))
    return TextWords(found, places, entities, inside)
