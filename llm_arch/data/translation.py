"""Texts and their translations, as rows or as two files with a sentence a line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llm_arch.corpus.opening import DAMAGED, open_raw
from llm_arch.data.completion import CompletionData
from llm_arch.data.files import Row
from llm_arch.data.sources import Source
from llm_arch.types import UserError


class TranslationData(CompletionData):
    """Rows with a text and its translation; `language` is that of the translations.

    A set may also be two files, `train.en,train.de`, with a sentence a line, compressed (.gz, .zst) or not.

    Args:
        train: see `CompletionData`, as for all arguments up to `test`; or two files with a comma between them.
        validation: the same to validate on.
        test: the same to test on.
        prompt_column: column of the text.
        completion_column: column of the translation.
        **options: the options of `CompletionData`.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        prompt_column: str = "source",
        completion_column: str = "target",
        **options: Any,
    ) -> None:
        super().__init__(
            train, validation, test, prompt_column=prompt_column, completion_column=completion_column, **options
        )

    def source(self, name: str) -> Source:
        """Rows of one file, or of two."""
        if "," in name and not Path(name).expanduser().exists():
            return ParallelFiles(name, str(self.prompt_column), self.completion_column)
        return super().source(name)


class ParallelFiles(Source):
    """Two files whose lines belong together.

    Args:
        name: both, with a comma between them.
        first: the column of the first file's lines.
        second: of the second's.
    """

    def __init__(self, name: str, first: str, second: str) -> None:
        self.name, self.first, self.second = name, first, second
        self.notes: list[str] = []
        self.nested = []
        self.files = [Path(part.strip()).expanduser() for part in name.split(",")]
        if len(self.files) != 2:
            raise UserError(f"{name}: parallel texts are two files with a comma between them")
        for file in self.files:
            if not file.is_file():
                raise UserError(f"{file}: no such file; check the path, which counts from {Path.cwd()}")

    @property
    def is_file(self) -> bool:
        """No: two."""
        return False

    def fingerprint(self) -> str:
        """Of both files."""
        found = []
        for path in self.files:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        return " ".join(found)

    def _rows(self) -> Iterator[Row]:
        with ExitStack() as stack:
            opened = [[stack.enter_context(closing(one)) for one in open_raw(file)[::-1]] for file in self.files]
            lines = [stream for _, stream in opened]
            try:
                for number, pair in enumerate(zip_longest(*lines), start=1):
                    yield self._row(number, pair)
            except DAMAGED as error:
                reason = str(error) or type(error).__name__
                raise UserError(f"{self.name}: can't be read to its end ({reason}); fetch the files again") from error

    def _row(self, number: int, pair: tuple[bytes | None, ...]) -> Row:
        values: dict[str, Any] = {}
        for column, line, file in zip((self.first, self.second), pair, self.files, strict=True):
            if line is None:
                raise UserError(
                    f"{self.name}: {file.name} ends before line {number}, and the other file goes on; "
                    "their lines must belong together"
                )
            try:
                values[column] = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                return Row(number, {}, f"{file.name} is not valid UTF-8 there; save it as UTF-8")
        return Row(number, values)
