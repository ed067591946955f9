"""Answers of a row: what was given, whether they stand where it says, and which tokens of the context they are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm_arch.data.words import Word

_SHOWN = 60


class Names(NamedTuple):
    """Columns of a row.

    Attributes:
        question: the question.
        context: the text it is about.
        answers: its answers, any number of them.
        answer: its only answer, in rows without `answers`.
        answer_start: the first character of the only answer.
        id: its id; None where rows have none.
    """

    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    answer: str = "answer"
    answer_start: str = "answer_start"
    id: str | None = "id"


class Answer(NamedTuple):
    """An answer: its characters and where the first of them stands in the context."""

    text: str
    start: int


def answers_fault(values: Mapping[str, Any], names: Names) -> str | None:
    """What is wrong with the answers of a row, as the end of a sentence, or None.

    Args:
        values: the row; question and context are texts.
        names: its columns.
    """
    pairs = _pairs(values, names)
    if isinstance(pairs, str):
        return pairs
    return next(filter(None, (_fault(text, start, values[names.context]) for text, start in pairs)), None)


def answers_of(values: Mapping[str, Any], names: Names) -> list[Answer]:
    """The answers of a row without fault, none where the question has none."""
    pairs = _pairs(values, names)
    assert not isinstance(pairs, str)
    return [Answer(text, start) for text, start in pairs]


def _pairs(values: Mapping[str, Any], names: Names) -> list[tuple[Any, Any]] | str:
    """Texts and places as they were given, or what is wrong with how."""
    given = values.get(names.answers)
    return _single(values, names) if given is None else _several(given, names.answers)


def _several(given: Any, column: str) -> list[tuple[Any, Any]] | str:
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
    elif isinstance(given, list) and all(
        isinstance(a, Mapping) and {"text", "answer_start"} <= a.keys() for a in given
    ):
        return [(answer["text"], answer["answer_start"]) for answer in given]
    return f'{column!r} holds {_short(given)}; write {{"text": ["…"], "answer_start": [0]}}, both empty for none'


def _single(values: Mapping[str, Any], names: Names) -> list[tuple[Any, Any]] | str:
    text, start, context = values.get(names.answer), values.get(names.answer_start), values[names.context]
    if text is None or text == "":
        return []
    if isinstance(start, str) and start.strip().isdecimal():  # of a csv file
        start = int(start)
    if isinstance(text, str) and (start is None or start == ""):
        start = context.find(text)
        if start < 0:
            return f"the answer {_short(text)} does not stand in the context; fix the row"
        if context.find(text, start + 1) > start:
            return (
                f"the answer {_short(text)} stands in the context several times; "
                f"say which is meant: {names.answer_start!r} is its first character"
            )
    return [(text, start)]


def _fault(text: Any, start: Any, context: str) -> str | None:
    """What is wrong with an answer."""
    if not isinstance(text, str) or type(start) is not int:
        return f"has the answer {_short(text)} at {_short(start)}; an answer is a text, and its place a whole number"
    if not text.strip():
        return "has an answer without characters; leave the answers of a question that has none empty"
    if start >= 0 and context.startswith(text, start):
        return None
    found = context.find(text)
    where = f"but at {found}" if found >= 0 else "nor anywhere else in it"
    return f"the answer {_short(text)} does not stand at character {start} of the context, {where}; fix the row"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def shown_tokens(context: str, offsets: Sequence[Word]) -> tuple[list[int], list[Word]]:
    """The tokens of a context that show some of it, and the characters of each, without white space at its ends.

    Args:
        context: the context.
        offsets: first character and end of each token.
    """
    places, words = [], []
    for place, (start, end) in enumerate(offsets):
        piece = context[start:end]
        if text := piece.strip():
            first = start + piece.index(text)
            places.append(place)
            words.append((first, first + len(text)))
    return places, words


def token_span(answer: Answer, words: Sequence[Word]) -> tuple[int, int] | None:
    """The first and the last token that have characters of an answer, or None where no token has.

    Args:
        answer: an answer without fault.
        words: first character and end of each token, in order.
    """
    start, end = characters(answer)
    first = bisect_right(words, start, key=lambda word: word[1])
    last = bisect_left(words, end, key=lambda word: word[0]) - 1
    return (first, last) if first <= last else None


def characters(answer: Answer) -> Word:
    """First character and end of an answer, white space at its ends left out."""
    text = answer.text.strip()
    start = answer.start + answer.text.index(text)
    return start, start + len(text)
