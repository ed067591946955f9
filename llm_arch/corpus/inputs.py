"""What the user names as a corpus → the files and sets that it stands for, in a fixed order."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from llm_arch.corpus.opening import plain_suffix
from llm_arch.corpus.stdlib import STDLIB, library_files
from llm_arch.types import UserError

HUB = "hub:"
Unit = Literal["auto", "line", "block", "file"]
_KINDS = {"line": "lines", "block": "paragraphs", "file": "files"}
_JSON_LINES = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class Part:
    """One file or set of a corpus.

    Attributes:
        name: as the user knows it; where it is a file, its path.
        kind: how it is read: lines, paragraphs, jsonl, parquet, files, docs, hub.
        size: bytes on disk, compressed if it is; 0 when unknown.
        stamp: when it was last changed, in nanoseconds.
    """

    name: str
    kind: str
    size: int = 0
    stamp: int = 0


def parts_of(inputs: Sequence[str], unit: Unit = "auto", *, without: Path | None = None) -> list[Part]:
    """The files and sets that some inputs stand for, each once, files of a folder or glob by name.

    Args:
        inputs: paths, globs, folders, `stdlib`, `stdlib:source`, `stdlib:docs`, `hub:NAME[:CONFIG][:SPLIT]`.
        unit: what a document of a plain text file is: a line, what lies between blank lines ("block"), or the whole
            file. "auto" is a line of a .txt file, and all of any other. Files of a folder that are not .txt (source
            code) are always one document each.
        without: a folder to leave out: the output, which may lie among the inputs.

    Raises:
        UserError: when an input stands for no file.
    """
    if unit not in get_args(Unit):
        raise UserError(f"documents must be one of {', '.join(get_args(Unit))}, got {unit!r}")
    if not inputs:
        raise UserError("no input is named; name files, folders, globs, stdlib or hub:NAME")
    outside = without.resolve() if without is not None else None
    found: dict[tuple[str, str], Part] = {}
    for name in inputs:
        before = len(found)
        again = False
        for part in _parts(name, unit):
            if outside is not None and part.kind != "hub" and Path(part.name).resolve().is_relative_to(outside):
                continue
            # The library's documentation and its source are two readings of the same files.
            key = (part.name if part.kind == "hub" else os.path.realpath(part.name), part.kind)
            again |= key in found
            found.setdefault(key, part)
        if len(found) == before and not again:
            raise UserError(f"{name}: there are no files in it")
    return list(found.values())


def fingerprint(parts: Iterable[Part]) -> str:
    """Changes when a file is added, removed, renamed or written; the same from run to run."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(json.dumps(asdict(part)).encode())
    return sha.hexdigest()


def _parts(name: str, unit: Unit) -> Iterator[Part]:
    if name.startswith(HUB):
        yield Part(name, "hub")
        return
    if name in STDLIB:
        yield from _library(name)
        return
    path = Path(name).expanduser()
    if path.is_dir():
        yield from (_part(file, unit if plain_suffix(file) == ".txt" else "file") for file in _files(path))
    elif path.is_file():
        yield _named(path, unit)
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))
        yield from (_named(Path(match), unit) for match in matches if os.path.isfile(match))
    else:
        near = f"; did you mean one of {', '.join(STDLIB)}?" if name.startswith("stdlib") else ""
        where = f", which counts from {Path.cwd()}" if not path.is_absolute() and not near else ""
        raise UserError(f"{name}: no such file or folder{near or '; check the path'}{where}")


def _library(name: str) -> Iterator[Part]:
    files = library_files()
    if not files:
        raise UserError(f"{name}: this Python has no library of .py files; name files of your own")
    for kind, of in (("files", "stdlib:source"), ("docs", "stdlib:docs")):
        if name in ("stdlib", of):
            yield from (Part(str(file), kind, *_stat(file)) for file in files)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden, by name; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _named(path: Path, unit: Unit) -> Part:
    """A file that was named itself."""
    if unit == "auto":
        unit = "line" if plain_suffix(path) == ".txt" else "file"
    return _part(path, unit, json_lines=_JSON_LINES | {".json"})


def _part(path: Path, unit: Unit, json_lines: set[str] = _JSON_LINES) -> Part:
    if unit == "auto":
        unit = "line"
    suffix = plain_suffix(path)
    kind = "jsonl" if suffix in json_lines else "parquet" if suffix == ".parquet" else _KINDS[unit]
    return Part(str(path), kind, *_stat(path))


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
