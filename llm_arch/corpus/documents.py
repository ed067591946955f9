"""Files, folders, hub sets and the embedded corpus as documents, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llm_arch.corpus.inputs import Unit, parts_of
from llm_arch.corpus.parsing import Block, Document, NoColumnError, parse
from llm_arch.corpus.reading import read
from llm_arch.types import UserError

__all__ = ["Document", "documents"]


def documents(inputs: Sequence[str], unit: Unit = "auto", *, column: str = "text") -> Iterator[Document]:
    """Every document of a corpus in order; memory is that of a block of about a megabyte and of one document.

    What is no document (empty and binary files, rows without text) is left out; `prepare` counts and names it.

    Args:
        inputs: paths, globs, folders, `stdlib`, `stdlib:source`, `stdlib:docs`, `hub:NAME[:CONFIG][:SPLIT]`.
        unit: what a document of a plain text file is, as `parts_of` explains it.
        column: where the text stands in .jsonl, .parquet and hub sets.

    Raises:
        UserError: when an input stands for no file, or has no such column.
    """
    for piece in read(parts_of(inputs, unit), column=column):
        if isinstance(piece.content, Block):
            try:
                yield from parse(piece.content)[0]
            except NoColumnError as error:
                raise UserError(str(error)) from error
