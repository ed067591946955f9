"""Files and sets → blocks of about a megabyte, cut between documents, from any place where a block ended.

Whoever cuts does not look into the documents, so that one process can feed many that do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from llm_arch.corpus.inputs import HUB, Part
from llm_arch.corpus.opening import DAMAGED, open_raw, skip
from llm_arch.corpus.parsing import HEAD, Block, Fault, no_column
from llm_arch.types import UserError

BLOCK_BYTES = 1 << 20
_ROWS = 64  # of a parquet file, read at a time
_ROWS_A_BLOCK = 10_000


class Place(NamedTuple):
    """Where reading goes on.

    Attributes:
        part: number of the file or set.
        offset: bytes of its content, or rows, that lie before.
        number: of the next line or document, from 1.
    """

    part: int = 0
    offset: int = 0
    number: int = 1


START = Place()


class Piece(NamedTuple):
    """What was read.

    Attributes:
        content: documents, or what is none.
        end: where the next one begins.
        read: bytes of all files that were read so far; of a hub set, characters of text.
    """

    content: Block | Fault
    end: Place
    read: int


def read(parts: Sequence[Part], start: Place = START, *, column: str = "text") -> Iterator[Piece]:
    """The corpus block by block.

    Args:
        parts: its files and sets.
        start: the `end` of an earlier piece, to go on behind it.
        column: where the text stands in .jsonl, .parquet and hub sets.
    """
    number, behind = start.part, sum(part.size for part in parts[: start.part])
    while number < len(parts):
        part = parts[number]
        place = start if number == start.part else Place(number)
        following = number + 1
        if part.kind in ("files", "docs"):
            following, piece = _small_files(parts, number)
            pieces: Iterable[Piece] = [piece]
        elif part.kind in ("hub", "parquet"):
            rows = _hub if part.kind == "hub" else _parquet
            pieces = _rows(part, place, rows(part, place.offset, column))
        else:
            pieces = _cut(part, place, column)
        for piece in pieces:
            yield piece._replace(read=behind + piece.read)
        behind += sum(part.size for part in parts[number:following])
        number = following


def _small_files(parts: Sequence[Part], first: int) -> tuple[int, Piece]:
    """Files that are one document each, as many as fill a block; they are read by who parses the block."""
    last, size = first, 0
    while last < len(parts) and parts[last].kind == parts[first].kind and (last == first or size < BLOCK_BYTES):
        size += parts[last].size
        last += 1
    names = json.dumps([part.name for part in parts[first:last]]).encode()
    return last, Piece(Block(parts[first].kind, parts[first].name, 1, False, names), Place(last), size)


def _cut(part: Part, place: Place, column: str) -> Iterator[Piece]:
    """The bytes of a file of lines; paragraphs are cut at blank lines only."""
    offset, number = place.offset, place.number
    behind = Place(place.part + 1)
    try:
        stream, raw = open_raw(part.name)
        with raw, stream:
            head = b""
            if offset == 0:
                head = stream.read(min(HEAD, BLOCK_BYTES))
                if not head or b"\0" in head:
                    yield Piece(Fault(part.name, 0, "binary" if head else "empty"), behind, part.size)
                    return
            elif stream is raw:
                raw.seek(offset)
            else:
                skip(stream, offset)
            while payload := _block(stream, head, paragraphs=part.kind == "paragraphs"):
                whole = offset == 0 and len(payload) < BLOCK_BYTES
                block = Block(part.kind, part.name, number, whole, payload, column)
                head = b""
                offset += len(payload)
                number += payload.count(b"\n")
                yield Piece(block, place._replace(offset=offset, number=number), raw.tell())
    except DAMAGED:
        why = "unreadable from here on" if offset else "unreadable"
        yield Piece(Fault(part.name, number if offset else 0, why), behind, part.size)


def _block(stream: BinaryIO, head: bytes, paragraphs: bool) -> bytes:
    """About a megabyte of whole lines, or of whole paragraphs; `head` was read before."""
    block = head + stream.read(BLOCK_BYTES - len(head))
    if len(block) < BLOCK_BYTES:
        return block
    lines = [block, stream.readline()]  # the rest of a line
    if paragraphs:
        while (line := stream.readline()).strip():
            lines.append(line)
        lines.append(line)
    return b"".join(lines)


def _rows(part: Part, place: Place, rows: Iterable[tuple[Any, int]]) -> Iterator[Piece]:
    """Texts of rows, each with the bytes read so far, as lists."""
    held: list[Any] = []
    size = read = 0

    def piece() -> Piece:
        block = Block("texts", part.name, place.number, False, json.dumps(held).encode())
        return Piece(block, Place(place.part, place.offset + len(held), place.number + len(held)), read)

    for text, read in rows:  # noqa: B007 - `piece` reads it
        held.append(text)
        size += len(text) if isinstance(text, str) else 0
        if size >= BLOCK_BYTES or len(held) >= _ROWS_A_BLOCK:
            yield (done := piece())
            place, held, size = done.end, [], 0
    if held:
        yield piece()
    elif place.offset == 0:
        yield Piece(Fault(part.name, 0, "empty"), Place(place.part + 1), 0)


def _parquet(part: Part, skipped: int, column: str) -> Iterator[tuple[Any, int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Without a buffer of its own size, a whole column of a row group would be read at once.
        file = pyarrow.parquet.ParquetFile(part.name, pre_buffer=False, buffer_size=BLOCK_BYTES)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{part.name} is not a readable parquet file ({str(error).splitlines()[0]})") from error
    with file:
        if column not in file.schema_arrow.names:
            raise UserError(no_column(part.name, column, file.schema_arrow.names))
        kind = file.schema_arrow.field(column).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or str(kind) == "string_view"):
            raise UserError(f"{part.name}: the column {column!r} holds {kind}, not text; name another with --column")
        total, done, groups = max(1, file.metadata.num_rows), 0, list(range(file.num_row_groups))
        while groups and done + file.metadata.row_group(groups[0]).num_rows <= skipped:
            done += file.metadata.row_group(groups.pop(0)).num_rows
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=[column]) if groups else ():
            for text in batch.column(0).to_pylist():
                done += 1
                if done > skipped:
                    yield text, part.size * done // total


def _hub(part: Part, skipped: int, column: str) -> Iterator[tuple[Any, int]]:
    import datasets

    name, *rest = part.name.removeprefix(HUB).split(":")
    split = rest[-1] if rest else "train"
    try:
        rows = datasets.load_dataset(name, *rest[:-1], split=split, streaming=True)
        if rows.column_names and column not in rows.column_names:
            raise UserError(no_column(part.name, column, rows.column_names))
        read = 0
        for number, values in enumerate(rows.skip(skipped) if skipped else rows):
            if column not in values and number == skipped == 0:
                raise UserError(no_column(part.name, column, values))
            text = values.get(column)
            read += len(text) if isinstance(text, str) else 0
            yield text, read
    except UserError:
        raise
    except Exception as error:  # the hub client raises many kinds of errors
        said = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{part.name}: the hub could not provide this set ({type(error).__name__}: {said}); "
            f"the same command goes on where it stopped, or save the set as .jsonl or .parquet and name that file"
        ) from error
