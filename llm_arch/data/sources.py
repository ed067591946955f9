"""Rows from where they lie: csv, tsv, jsonl and parquet files, hub sets, and the embedded set. One row at a time."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from llm_arch.types import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
EMBEDDED = "smart_home"
_SPLITS = ("train", "validation", "test")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Row(NamedTuple):
    """One row: its line in the file (or its number), its values, and what is wrong with it, if anything."""

    line: int
    values: dict[str, Any]
    fault: str | None = None


class Source:
    """A set of rows named on the command line.

    Args:
        name: a .csv, .tsv, .jsonl or .parquet file, `hub:NAME:SPLIT` (or `hub:NAME:CONFIG:SPLIT`), or
            `smart_home:SPLIT`.
        language: language of the embedded set.
    """

    def __init__(self, name: str, language: str = "en") -> None:
        self.name = name
        self.language = language
        self.notes: list[str] = []
        if not self.is_file:
            return
        path = Path(name).expanduser()
        if path.is_dir():
            raise UserError(f"{name} is a directory; name a file")
        if path.suffix not in SUFFIXES:
            raise UserError(f"{name}: the file name must end in {', '.join(SUFFIXES)}")
        if not path.exists():
            raise UserError(f"{name}: no such file; check the path, which counts from {Path.cwd()}")

    @property
    def is_file(self) -> bool:
        """Whether the rows lie in a local file."""
        return not (self.name.startswith("hub:") or self.name.split(":")[0] == EMBEDDED)

    def fingerprint(self) -> str:
        """Changes whenever the rows do; the same from run to run."""
        if self.is_file:
            with Path(self.name).expanduser().open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if self.name.startswith("hub:"):
            return str(self._hub()._fingerprint)
        try:
            made_by = [version("home-assistant-intents"), version("hassil"), version("llm_arch")]
        except PackageNotFoundError as error:
            raise UserError("the embedded set needs its packages; run: pip install 'llm_arch[demo]'") from error
        return " ".join([self.name, self.language, *made_by])

    def rows(self) -> Iterator[Row]:
        """Every row in order; a row that can't be read comes with its fault instead of stopping the others."""
        if self.name.startswith("hub:"):
            yield from (Row(i, values) for i, values in enumerate(self._hub_rows(), start=1))
        elif not self.is_file:
            yield from (Row(i, values) for i, values in enumerate(self._embedded(), start=1))
        else:
            path = Path(self.name).expanduser()
            readers = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _jsonl, ".parquet": _parquet}
            yield from readers[path.suffix](path)

    def _hub(self) -> Any:
        import datasets

        name, *rest = self.name.removeprefix("hub:").split(":")
        if not rest:
            raise UserError(f"{self.name}: name the split too, as in hub:{name}:train")
        try:
            loaded = datasets.load_dataset(name, *rest[:-1], split=rest[-1])
        except ValueError as error:
            said = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"{self.name}: {said[0]}") from error
        except Exception as error:  # the hub client raises many kinds of network errors
            raise UserError(
                f"{self.name}: the hub could not provide this set ({type(error).__name__}); "
                f"where there is no network, save it as .jsonl or .parquet and name that file"
            ) from error
        return loaded

    def _hub_rows(self) -> Iterator[dict[str, Any]]:
        """Rows with class labels by name instead of number."""
        from datasets import ClassLabel

        loaded = self._hub()
        kinds = {column: getattr(kind, "feature", kind) for column, kind in loaded.features.items()}
        names = {column: kind.names for column, kind in kinds.items() if isinstance(kind, ClassLabel)}
        for values in loaded:
            yield values | {column: _named(values[column], names[column]) for column in names}

    def _embedded(self) -> list[dict[str, Any]]:
        split = self.name.partition(":")[2] or "train"
        if split not in _SPLITS:
            raise UserError(f"{self.name}: the embedded set has the splits {', '.join(_SPLITS)}")
        made = _made(self.language)
        self.notes = made.notes
        return made.splits[split]


@cache
def _made(language: str) -> Any:
    """The embedded set, made once a process for all its splits."""
    from llm_arch.data.smart_home import smart_home

    return smart_home(language)


def with_splits(train: str | None, validation: str | None, test: str | None) -> dict[str, str]:
    """Name the source of each split; a set that brings its own splits (`smart_home`) fills those not given."""
    named = {"train": train, "validation": validation, "test": test}
    if train == EMBEDDED:
        named = {
            split: given if split != "train" and given else f"{EMBEDDED}:{split}" for split, given in named.items()
        }
    return {split: name for split, name in named.items() if name}


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and value >= 0 else value


def _undecodable(values: list[str]) -> bool:
    # Bytes that are not UTF-8 were read as lone surrogates.
    return any("\udc80" <= c <= "\udcff" for value in values for c in value if c >= "\ud800")


def _delimited(path: Path) -> Iterator[Row]:
    """Comma-separated with quotes (RFC 4180), or tab-separated without (IANA), where a quote is just a character."""
    csv.field_size_limit(2**31 - 1)
    tabs = path.suffix == ".tsv"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(
            file,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            strict=not tabs,
        )
        header: list[str] | None = None
        line = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if header is None:
                    raise UserError(f"{path}, line {line}: the header is not valid csv ({error})") from error
                yield Row(line, {}, f"is not valid csv ({error})")
                line = reader.line_num + 1
                continue
            if cells is None:
                return
            if cells and header is None:
                header = cells
                if _undecodable(header):
                    raise UserError(f"{path}, line {line}: the header is not valid UTF-8; save the file as UTF-8")
                if len(set(header)) != len(header):
                    raise UserError(f"{path}, line {line}: the header names a column twice: {', '.join(header)}")
            elif cells and header is not None:
                values = dict(zip(header, cells, strict=False))
                fault = None
                if len(cells) != len(header):
                    fault = f"has {len(cells)} fields where the header has {len(header)}"
                elif _undecodable(cells):
                    fault = "is not valid UTF-8; save the file as UTF-8"
                yield Row(line, values, fault)
            line = reader.line_num + 1


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                values = json.loads(raw.rstrip().decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield Row(line, {}, "is not valid UTF-8; save the file as UTF-8")
            except json.JSONDecodeError as error:
                yield Row(line, {}, f"is not valid JSON ({error.msg} at column {error.colno})")
            except RecursionError:
                yield Row(line, {}, "is nested too deeply")
            except ValueError:  # thousands of digits
                yield Row(line, {}, "holds a number that is too long")
            else:
                fault = None
                if not isinstance(values, dict):
                    fault = "is not a JSON object; write one object a line"
                elif _SURROGATE.search(raw) and not _encodable(values):
                    fault = "holds half a character (a lone surrogate such as \\ud83d); fix the row"
                yield Row(line, values if fault is None else {}, fault)


def _encodable(values: dict[str, Any]) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from error
    line = 0
    for batch in file.iter_batches(1000):
        for values in batch.to_pylist():
            line += 1
            yield Row(line, values)
