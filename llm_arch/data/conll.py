"""CoNLL-style files: a token a line with its tag in another column, and an empty line behind each sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from llm_arch.data.files import Row, undecodable
from llm_arch.tags import split_tag
from llm_arch.types import UserError

_DOCUMENT = ("-DOCSTART-", "#begin document", "#end document")
_SPACES = re.compile(r"[ \t]+")
_SAMPLE = 200  # token lines from which a file's columns are told
_TAB = "\t"
_NAMES = {_TAB: "tabs", ",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}
# What other schemes call the same: L and U of BILOU, W of BMEWO, M of BMES.
_OTHER_PREFIXES = {"L": "E", "U": "S", "W": "S", "M": "I"}


def usual_tag(tag: str) -> str:
    """A tag with the prefixes of BIOES, for those of BILOU, BMES and BMEWO."""
    return _OTHER_PREFIXES[tag[0]] + tag[1:] if tag[1:2] == "-" and tag[0] in _OTHER_PREFIXES else tag


@dataclass(frozen=True)
class Columns:
    """Where the lines of a file have token and tag.

    Args:
        token: place of the token, from 0; negative from the end.
        tag: place of the tag.
        delimiter: what separates columns; None for tabs where most lines have one, else any white space.
        width: columns of a line, or 0 while that is not known.
    """

    token: int = 0
    tag: int = -1
    delimiter: str | None = None
    width: int = 0

    def split(self, line: str) -> list[str]:
        """The cells of a line."""
        if self.delimiter is None or self.delimiter == " ":
            return _SPACES.split(line.strip(" \t"))
        return [cell.strip(" \t") for cell in line.split(self.delimiter)]

    def tagged(self, line: str) -> bool:
        """Whether the line has a tag where one belongs."""
        cells = self.split(line)
        return -len(cells) <= self.tag < len(cells) > 1 and _is_tag(cells[self.tag])

    def is_comment(self, line: str) -> bool:
        """A line that begins with # and white space, and has no tag: a token # is none."""
        if line.startswith("# "):
            spaced = Columns(self.token, self.tag)  # a space in place of a tab is a fault, and not a comment
            return not self.tagged(line) and not (spaced.tagged(line) and len(spaced.split(line)) == self.width)
        return line.startswith("#\t") and len(self.split(line)) != self.width and not self.tagged(line)

    def fault(self, cells: list[str]) -> str | None:
        """What is wrong with a line."""
        if undecodable(cells):
            return "is not valid UTF-8; save the file as UTF-8"
        if len(cells) != self.width:
            return f"has {len(cells)} columns where the file has {self.width}; fix the line"
        return None if cells[self.token].strip() else "has no token; fix the line"


def read_conll(path: Path, columns: Columns, tokens: str = "tokens", tags: str = "tags") -> Iterator[Row]:
    """The sentences of a file, each a row; comments and the borders of documents are left out.

    A line that can't be read is the fault of its whole sentence. A file of one column has tokens and no tags.

    Args:
        path: the file.
        columns: where token and tag are.
        tokens: name for the column of the tokens.
        tags: name for the column of the tags.

    Raises:
        UserError: when the file is not of this kind, saying what it looks like.
    """
    columns = _measured(path, columns)
    sentence: list[tuple[int, str]] = []
    for number, line in chain(_lines(path), [(0, "")]):
        if _ends_sentence(line):
            if sentence:
                yield _row(sentence, columns, tokens, tags)
            sentence = []
        elif not columns.is_comment(line):
            sentence.append((number, line))


def _row(sentence: list[tuple[int, str]], columns: Columns, tokens: str, tags: str) -> Row:
    rows = [columns.split(line) for _, line in sentence]
    for (number, _), cells in zip(sentence, rows, strict=True):
        if fault := columns.fault(cells):
            return Row(number, {}, fault)
    places = {tokens: columns.token} | ({tags: columns.tag} if columns.width > 1 else {})
    values = {name: [cells[place] for cells in rows] for name, place in places.items()}
    return Row(sentence[0][0], values, None, tuple(number for number, _ in sentence))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from ((number, line.rstrip("\n")) for number, line in enumerate(file, start=1))


def _ends_sentence(line: str) -> bool:
    return not line.strip() or line.startswith(_DOCUMENT)


def _is_tag(cell: str) -> bool:
    try:
        split_tag(usual_tag(cell))
    except UserError:
        return False
    return True


# What a file looks like


def _measured(path: Path, columns: Columns) -> Columns:
    """The columns with delimiter and width as the first lines of the file have them."""
    spaced = Columns(columns.token, columns.tag)
    lines = (
        line
        for _, line in _lines(path)
        if not _ends_sentence(line) and not (line.startswith(("# ", "#\t")) and not spaced.tagged(line))
    )
    sample = list(islice(lines, _SAMPLE)) or ["#"]
    delimiter = _TAB if columns.delimiter == "\\t" else columns.delimiter  # as a shell hands it on
    if delimiter is None and 2 * sum(_TAB in line for line in sample) > len(sample):
        delimiter = _TAB
    columns = Columns(columns.token, columns.tag, delimiter)
    width = _width(sample, columns)
    if width > 1:
        for name, place in (("token_column", columns.token), ("tag_column", columns.tag)):
            if not -width <= place < width:
                raise UserError(f"{path}: data.{name} is {place}, but the file has {width} columns (0 to {width - 1})")
        if (columns.token - columns.tag) % width == 0:
            raise UserError(f"{path}: data.token_column and data.tag_column name the same column; the tags need one")
    columns = Columns(columns.token if width > 1 else 0, columns.tag, delimiter, width)
    tagged = 2 * sum(map(columns.tagged, sample)) >= len(sample)
    if not tagged and (width != 1 or any(_width(sample, Columns(delimiter=other)) > 1 for other in _NAMES)):
        raise UserError(f"{path} does not hold a token and its tag a line; {_appearance(sample, columns)}")
    return columns


def _width(lines: Sequence[str], columns: Columns) -> int:
    """How many columns most lines have; the larger number where two are as common."""
    found = Counter(len(columns.split(line)) for line in lines)
    return max(found, key=lambda width: (found[width], width))


def _appearance(lines: Sequence[str], used: Columns) -> str:
    """What a file looks like that can't be read so, and what to do."""
    if lines[0].lstrip().startswith("{"):
        return "it looks like JSON lines: let its name end in .jsonl"
    for delimiter, name in _NAMES.items():
        width = _width(lines, Columns(delimiter=delimiter))
        for place in range(width - 1, 0, -1):
            if 2 * sum(map(Columns(0, place, delimiter).tagged, lines)) > len(lines):
                change = []
                if delimiter != (used.delimiter or " "):
                    change.append(f"--data.delimiter {delimiter!r}")
                if place != used.tag % width:
                    change.append(f"--data.tag_column {place}")
                return f"it looks separated by {name} with tags in column {place}: set {' '.join(change)}"
    if _width(lines, Columns(delimiter=",")) > 1:
        return "it looks like comma-separated values: let its name end in .csv"
    return "no column holds tags such as O or B-person: texts without tags belong into a .jsonl file"
