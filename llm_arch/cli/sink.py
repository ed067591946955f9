"""Where a verb writes its lines: the terminal, or a file that is complete or not there."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from llm_arch.types import UserError


@contextmanager
def sink(name: str | None, option: str = "--output") -> Iterator[TextIO]:
    """A stream to write to.

    Args:
        name: a file, which appears once everything is written; None for the terminal.
        option: what the user named it with.

    Raises:
        UserError: when the file is a directory, or its folder does not exist.
    """
    if name is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    with binary_sink(name, option) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        yield text


@contextmanager
def binary_sink(name: str, option: str = "--output") -> Iterator[BinaryIO]:
    """A file for bytes; arguments and errors as those of `sink`."""
    path = Path(name)
    if path.is_dir():
        raise UserError(f"{option} {name} is a directory; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {name}: the folder {path.parent} does not exist; make it first")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
