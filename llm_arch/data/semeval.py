"""The files of SemEval-2010 Task 8 (Hendrickx et al. 2010): sentences with two marked entities and their relation.

A block a sentence, with an empty line behind it; the relation may be absent, and so may the comment:

    1 <tab> "The <e1>storm</e1> caused a <e2>flood</e2>."
    Cause-Effect(e1,e2)
    Comment: …
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_arch.data.files import Row, undecodable

_SENTENCE = re.compile(r"\d+\t\s*(.*)")
_MARKER = re.compile(r"</?e[12]>")
_MARKERS = ("<e1>", "</e1>", "<e2>", "</e2>")
_NOT_UTF8 = "is not valid UTF-8; save the file as UTF-8"
_EXAMPLE = "mark both entities once, as in <e1>storm</e1> and <e2>flood</e2>"


class Names(NamedTuple):
    """What the columns of a row are called."""

    text: str
    head: str
    tail: str
    label: str


def read_semeval(path: Path, names: Names) -> Iterator[Row]:
    """The sentences of a file, each a row with e1 as the head and e2 as the tail; None for a relation that is absent.

    A line that is neither sentence, relation nor comment is a row with a fault.

    Args:
        path: the file.
        names: what to call the columns.
    """
    row: Row | None = None
    expected = False  # whether a relation may follow
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.strip()
            if not line:
                expected = False
            elif sentence := _SENTENCE.fullmatch(line):
                if row is not None:
                    yield row
                row, expected = _row(number, sentence[1], names), True
            elif line.startswith("Comment:"):
                continue
            elif row is not None and expected:
                expected = False
                if undecodable([line]):
                    row = Row(number, {}, _NOT_UTF8)
                elif row.fault is None:
                    row.values[names.label] = line
            else:
                if row is not None:
                    yield row
                row, expected = Row(number, {}, _stray(line)), False
    if row is not None:
        yield row


def _stray(line: str) -> str:
    return (
        f"holds {line[:40]!r}, which is neither a sentence of SemEval-2010 Task 8 (a number, a tab and the text) "
        f"nor the relation of one"
    )


def _row(number: int, marked: str, names: Names) -> Row:
    if undecodable([marked]):
        return Row(number, {}, _NOT_UTF8)
    if len(marked) > 1 and marked[0] == marked[-1] == '"':
        marked = marked[1:-1]
    found = [match[0] for match in _MARKER.finditer(marked)]
    if fault := _fault(found):
        return Row(number, {}, fault)
    text, places = "", {}
    for part in re.split(f"({_MARKER.pattern})", marked):
        if part in _MARKERS:
            places[part] = len(text)
        else:
            text += part
    spans = [{"start": places[f"<{one}>"], "end": places[f"</{one}>"]} for one in ("e1", "e2")]
    values: dict[str, Any] = {names.text: text, names.head: spans[0], names.tail: spans[1], names.label: None}
    return Row(number, values)


def _fault(found: list[str]) -> str | None:
    """What is wrong with the markers of a sentence."""
    counts = Counter(found)
    for marker in _MARKERS:
        if counts[marker] != 1:
            return f"has {'no' if not counts[marker] else counts[marker]} {marker}; {_EXAMPLE}"
    if "".join(found) not in ("<e1></e1><e2></e2>", "<e2></e2><e1></e1>"):
        return f"has its markers in the order {' '.join(found)}, so that entities overlap; {_EXAMPLE}"
    return None
