"""A block of a file → its documents.

Worker processes import this, so it needs the standard library alone: they must start at once and stay small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llm_arch.corpus.opening import DAMAGED, open_raw
from llm_arch.corpus.stdlib import documentation

HEAD = 8192  # bytes of a file that tell whether it is text
_BOM = b"\xef\xbb\xbf"


class Document(NamedTuple):
    """One document.

    Attributes:
        text: its text.
        source: the file or set it comes from.
        number: its line in the file, or its number in the set, from 1.
    """

    text: str
    source: str
    number: int


class Fault(NamedTuple):
    """Something that is no document.

    Attributes:
        source: the file or set.
        number: the line or row; 0 means the whole file.
        why: in a few words, the same for all of a kind.
    """

    source: str
    number: int
    why: str


class Block(NamedTuple):
    """Some documents as they lie in their file, cut between two of them.

    Attributes:
        kind: how `payload` is to be read, a key of `PARSERS`.
        source: the file or set.
        number: the line or number at which it begins, from 1.
        whole: whether it is all there is of its source.
        payload: bytes of the file; or a JSON list of texts, or of the paths of files.
        column: where the text stands, in rows.
    """

    kind: str
    source: str
    number: int
    whole: bool
    payload: bytes
    column: str = "text"


class NoColumnError(ValueError):
    """No row has the column that was asked for; the message is meant for the user."""


Parsed = Iterator[Document | Fault]


def parse(block: Block) -> tuple[list[Document], list[Fault]]:
    """The documents of a block in order, and what in it is none.

    Raises:
        NoColumnError: when a source begins with rows that lack the column.
    """
    documents: list[Document] = []
    faults: list[Fault] = []
    for found in PARSERS[block.kind](block):
        (documents if isinstance(found, Document) else faults).append(found)  # type: ignore[arg-type]
    if block.whole and not documents and not faults and block.kind != "docs":
        faults.append(Fault(block.source, 0, "empty"))
    return documents, faults


def _raw_lines(block: Block) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by number."""
    payload = block.payload.removeprefix(_BOM) if block.number == 1 else block.payload
    for number, raw in enumerate(payload.split(b"\n"), start=block.number):
        if not _blank(raw):
            yield number, raw.removesuffix(b"\r")


def _blank(line: bytes) -> bool:
    """Whether a line has no more than white space, that of other scripts included."""
    inner = line.strip()
    return not inner or (not 0x20 < inner[0] < 0x7F and not inner.decode("utf-8", "replace").strip())


def _decoded(raw: bytes, source: str, number: int) -> Document | Fault:
    try:
        return Document(raw.decode("utf-8"), source, number)
    except UnicodeDecodeError:
        return Fault(source, number, "not UTF-8")


def _lines(block: Block) -> Parsed:
    """A document a line."""
    for number, raw in _raw_lines(block):
        yield _decoded(raw, block.source, number)


def _paragraphs(block: Block) -> Parsed:
    """Documents with blank lines between them."""
    held: list[bytes] = []
    first = last = 0
    for number, raw in _raw_lines(block):
        if held and number > last + 1:
            yield _decoded(b"\n".join(held), block.source, first)
            held = []
        if not held:
            first = number
        held.append(raw)
        last = number
    if held:
        yield _decoded(b"\n".join(held), block.source, first)


def _json_lines(block: Block) -> Parsed:
    """A JSON object a line, with the text in a column."""
    lacking: dict[str, Any] | None = None
    found = False
    for number, raw in _raw_lines(block):
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError):
            yield Fault(block.source, number, "not JSON")
            continue
        if not isinstance(values, dict):
            yield Fault(block.source, number, "not a JSON object")
        elif block.column not in values:
            lacking = lacking or values
            yield Fault(block.source, number, "no text")
        else:
            found = True
            yield _text(values[block.column], block.source, number)
    if lacking is not None and not found and block.number == 1:
        raise NoColumnError(no_column(block.source, block.column, lacking))


def no_column(source: str, column: str, known: Any) -> str:
    """What to say of rows without the column that holds the text."""
    return f"{source} has no column {column!r}; it has: {', '.join(map(str, known))}. Name yours with --column"


def _texts(block: Block) -> Parsed:
    """A list of texts, with null for rows that have none."""
    for number, value in enumerate(json.loads(block.payload), start=block.number):
        yield _text(value, block.source, number)


def _text(value: Any, source: str, number: int) -> Document | Fault:
    if not isinstance(value, str) or not value.strip():
        return Fault(source, number, "no text")
    return Document(value, source, number)


def _files(block: Block) -> Parsed:
    """Every file a document."""
    for path in json.loads(block.payload):
        content = _content(path)
        found = content if isinstance(content, Fault) else _decoded(content.removeprefix(_BOM), path, 1)
        yield found if isinstance(found, Fault) or found.text.strip() else Fault(path, 0, "empty")


def _docs(block: Block) -> Parsed:
    """Files of Python's library: what they say of themselves."""
    for path in json.loads(block.payload):
        content = _content(path)
        if isinstance(content, Fault):
            yield content
            continue
        for number, text in enumerate(documentation(path, content), start=1):
            yield Document(text, path, number)


def _content(path: str) -> bytes | Fault:
    """The bytes of a file, of which only the head is read where it is no text."""
    try:
        stream, raw = open_raw(path)
        with raw, stream:
            head = stream.read(HEAD)
            return Fault(path, 0, "binary") if b"\0" in head else head + stream.read()
    except DAMAGED:
        return Fault(path, 0, "unreadable")


PARSERS: dict[str, Callable[[Block], Parsed]] = {
    "lines": _lines,
    "paragraphs": _paragraphs,
    "jsonl": _json_lines,
    "texts": _texts,
    "files": _files,
    "docs": _docs,
}
