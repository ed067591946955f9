"""What a row of a source is: its texts, what is labelled in them, and its label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llm_arch.augmentation.passages import Edits, Marks, Passage, Shift, TextPassage, TokenPassage
from llm_arch.data.answers import Names, answers_fault, answers_of
from llm_arch.data.cells import text_fault
from llm_arch.data.conll import usual_tag
from llm_arch.data.spans import span_fault
from llm_arch.data.tagged import tokens_fault
from llm_arch.tags import split_tag
from llm_arch.types import UserError

Values = dict[str, Any]


class Columns(NamedTuple):
    """The columns that a row may have; which of them it has tells what it is.

    Attributes:
        text: a text.
        text_pair: the second text of a pair.
        label: the label of the row, or a list of labels.
        spans: labelled pieces of the text, a list of {"start", "end", "label"} in characters, end exclusive.
        tokens: tokens instead of a text.
        tags: their tags.
        head: the first of two entities in the text, {"start", "end"}.
        tail: the second.
        question: a question about a context.
        context: the context.
        answers: its answers with their places, in either form of SQuAD.
        answer: its only answer, in rows without `answers`.
        answer_start: the place of the only answer.
    """

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"
    spans: str = "spans"
    tokens: str = "tokens"
    tags: str = "tags"
    head: str = "head"
    tail: str = "tail"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    answer: str = "answer"
    answer_start: str = "answer_start"


class TextRow(NamedTuple):
    """A row without fault.

    Attributes:
        values: its cells.
        passages: its texts.
        label: its label as text, several joined by commas; None where it has none.
        marked: what is labelled in its texts, in words, or None; a text with such pieces can't be written anew.
    """

    values: Mapping[str, Any]
    passages: list[Passage]
    label: str | None
    marked: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the row."""
        return tuple(passage.text for passage in self.passages)

    def edited(self, edits: Sequence[Edits]) -> Values | None:
        """The row with other words in its passages; None where there are no edits."""
        if not any(edits):
            return None
        cells: Values = {}
        for passage, of_passage in zip(self.passages, edits, strict=True):
            if of_passage:
                cells |= passage.edited(of_passage)
        return {**self.values, **cells}


def read_row(values: Mapping[str, Any], columns: Columns) -> TextRow:
    """Tell what a row is.

    Args:
        values: its cells.
        columns: how they are called.

    Raises:
        UserError: what is wrong with it, as the end of a sentence.
    """
    has = {name for name in columns if values.get(name) is not None}
    marked: str | None = None
    passages: list[Passage]
    if columns.tokens in has and (columns.tags in has or columns.text not in has):
        passages = [_tokens(values, columns, has)]
        marked = "tokens"
    elif {columns.question, columns.context} <= has:
        passages, marked = _question(values, columns), "answers"
    elif columns.text in has:
        passages, marked = _text(values, columns, has)
    else:
        raise UserError(f"has no {columns.text!r}; it has: {', '.join(map(str, values)) or 'nothing'}")
    return TextRow(values, passages, _label(values.get(columns.label)), marked)


def _label(label: Any) -> str | None:
    if isinstance(label, list):
        return ", ".join(str(one).strip() for one in label) or None
    return None if label is None or not str(label).strip() else str(label).strip()


def _checked(fault: str | None) -> None:
    if fault:
        raise UserError(fault)


def _tokens(values: Mapping[str, Any], columns: Columns, has: set[str]) -> TokenPassage:
    tokens, tags = values[columns.tokens], values.get(columns.tags)
    _checked(tokens_fault(tokens, columns.tokens))
    if tags is not None:
        if not isinstance(tags, list) or len(tags) != len(tokens):
            count = len(tags) if isinstance(tags, list) else type(tags).__name__
            raise UserError(f"has {len(tokens)} tokens, but in {columns.tags!r} {count}; give each token one tag")
        for tag in tags:
            split_tag(usual_tag(str(tag)))
    return TokenPassage((columns.tokens, columns.tags), tokens, tags, columns.text if columns.text in has else None)


def _question(values: Mapping[str, Any], columns: Columns) -> list[Passage]:
    names = Names(columns.question, columns.context, columns.answers, columns.answer, columns.answer_start)
    _checked(text_fault(values, (columns.question, columns.context)) or answers_fault(values, names))
    found = answers_of(values, names)
    given = values.get(columns.answers)

    def moved(shift: Shift) -> Values:
        starts = [shift(answer.start) for answer in found]
        if isinstance(given, Mapping):
            return {columns.answers: {**given, "answer_start": starts}}
        if given is not None:
            pairs = zip(given, starts, strict=True)
            return {columns.answers: [{**answer, "answer_start": start} for answer, start in pairs]}
        return {columns.answer_start: starts[0]} if starts else {}

    marks = Marks([(answer.start, answer.start + len(answer.text)) for answer in found], moved)
    question, context = values[columns.question], values[columns.context]
    return [TextPassage(columns.question, question), TextPassage(columns.context, context, [marks])]


def _text(values: Mapping[str, Any], columns: Columns, has: set[str]) -> tuple[list[Passage], str | None]:
    pair = columns.text_pair if columns.text_pair in has else None
    _checked(text_fault(values, (columns.text, pair)))
    text = values[columns.text]
    marks: list[Marks] = []
    marked: list[str] = []
    if columns.spans in has:
        spans = values[columns.spans]
        _checked(span_fault(spans, text, columns.spans))
        marks.append(_moved(spans, lambda found: {columns.spans: found}))
        marked += ["spans"] if spans else []
    entities = [columns.head, columns.tail]
    if any(isinstance(values.get(name), Mapping) for name in entities):
        cells = [values.get(name) for name in entities]
        places = [
            {**cell, "label": name} if isinstance(cell, Mapping) else cell
            for name, cell in zip(entities, cells, strict=True)
        ]
        _checked(span_fault(places, text, " and ".join(entities)))
        given = [values[name] for name in entities]
        marks.append(_moved(given, lambda found: dict(zip(entities, found, strict=True))))
        marked.append("entities")
    passages: list[Passage] = [TextPassage(columns.text, text, marks)]
    if pair:
        passages.append(TextPassage(pair, values[pair]))
    return passages, " and ".join(marked) or None


def _moved(pieces: Sequence[Mapping[str, Any]], cells: Callable[[list[Values]], Values]) -> Marks:
    """Marks of pieces that have a start and an end."""

    def moved(shift: Shift) -> Values:
        return cells([{**piece, "start": shift(piece["start"]), "end": shift(piece["end"])} for piece in pieces])

    return Marks([(piece["start"], piece["end"]) for piece in pieces], moved)
