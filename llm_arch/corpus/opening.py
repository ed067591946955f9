"""Opening files for reading, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# What the readers raise at bytes that no compressor wrote, or at an end that comes too early.
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


def open_raw(path: str | Path) -> tuple[BinaryIO, BinaryIO]:
    """A file's content as a stream, and the file itself, whose `tell` says how much of it was read.

    Args:
        path: a file; .gz, .zst, .bz2 and .xz are decompressed on the way.
    """
    raw = Path(path).open("rb")  # noqa: SIM115 - the caller closes it
    suffix = Path(path).suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw)), raw
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw)), raw
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw)), raw
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"), 1 << 20), raw
    return raw, raw


def plain_suffix(path: str | Path) -> str:
    """The suffix that says what a file holds: `.jsonl` of `a.jsonl.gz`."""
    path = Path(path)
    return (Path(path.stem) if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def skip(stream: BinaryIO, count: int) -> None:
    """Read on without keeping."""
    while count and (got := len(stream.read(min(count, 1 << 20)))):
        count -= got
