"""Rows from where they lie: files, hub sets, and embedded sets. One row at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_arch.data.embedded import SPLITS, brings_splits, is_embedded, made, made_by, parse
from llm_arch.data.files import READERS, Reader, Row
from llm_arch.data.samples import SAMPLE, sample_file, sample_rows
from llm_arch.types import UserError

ANY_SUFFIX = ""


class Source:
    """A set of rows named on the command line.

    Args:
        name: a .csv, .tsv, .jsonl or .parquet file, `hub:NAME:SPLIT` (or `hub:NAME:CONFIG:SPLIT`),
            `sample:NAME:SPLIT`, or a set of installed packages (`SETS`): `smart_home:SPLIT`, `gettext:LANG:SPLIT`,
            `chatterbot:LANG:SPLIT`, `stdlib:docstrings:SPLIT`, `stdlib:functions:SPLIT`.
        language: language of `smart_home`.
        readers: how files are read that a format has beyond these, by suffix; `ANY_SUFFIX` stands for all others.
        columns: columns that will be asked for; a name with dots, such as `question.stem`, reaches into cells that hold
            mappings, where no column has that very name.
    """

    def __init__(
        self,
        name: str,
        language: str = "en",
        readers: Mapping[str, Reader] | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.language = language
        self.nested = [column for column in columns if "." in column]
        self.readers = READERS | dict(readers or {})
        self.notes: list[str] = []
        if not self.is_file:
            return
        path = Path(name).expanduser()
        if path.is_dir():
            raise UserError(f"{name} is a directory; name a file")
        if path.suffix not in self.readers and ANY_SUFFIX not in self.readers:
            raise UserError(f"{name}: the file name must end in {', '.join(self.readers)}")
        if not path.exists():
            raise UserError(f"{name}: no such file; check the path, which counts from {Path.cwd()}")

    @property
    def is_file(self) -> bool:
        """Whether the rows lie in a local file."""
        return not (self.name.startswith(("hub:", SAMPLE)) or is_embedded(self.name))

    def fingerprint(self) -> str:
        """Changes whenever the rows do; the same from run to run."""
        if self.is_file:
            with Path(self.name).expanduser().open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if self.name.startswith(SAMPLE):
            return f"{self.name} {hashlib.sha256(sample_file(self.name).read_bytes()).hexdigest()}"
        if self.name.startswith("hub:"):
            return str(self._hub()._fingerprint)
        return " ".join([self.name, self.language, *made_by(parse(self.name).set)])

    def rows(self) -> Iterator[Row]:
        """Every row in order; a row that can't be read comes with its fault instead of stopping the others."""
        for row in self._rows():
            found = {name: _inside(row.values, name) for name in self.nested if name not in row.values}
            found = {name: value for name, value in found.items() if value is not None}
            yield row._replace(values=row.values | found) if found else row

    def _rows(self) -> Iterator[Row]:
        if self.name.startswith("hub:"):
            yield from (Row(i, values) for i, values in enumerate(self._hub_rows(), start=1))
        elif self.name.startswith(SAMPLE):
            yield from (Row(line, values) for line, values in sample_rows(self.name))
        elif not self.is_file:
            yield from (Row(i, values) for i, values in enumerate(self._embedded(), start=1))
        else:
            path = Path(self.name).expanduser()
            yield from self.readers[path.suffix if path.suffix in self.readers else ANY_SUFFIX](path)

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
        name, part, split = parse(self.name)
        found = made(name, part, self.language)
        self.notes = found.notes
        return found.splits[split or "train"]


def with_splits(train: str | None, validation: str | None, test: str | None) -> dict[str, str]:
    """Name the source of each split; a set that brings its own (`gettext:de`, `sample:NAME`) fills those not given."""
    named = dict(zip(SPLITS, (train, validation, test), strict=True))
    if train is not None and (brings_splits(train) or (train.startswith(SAMPLE) and train.count(":") == 1)):
        named = {split: given if split != "train" and given else f"{train}:{split}" for split, given in named.items()}
    return {split: name for split, name in named.items() if name}


def _inside(values: Mapping[str, Any], name: str) -> Any:
    """What a mapping holds under keys joined by dots, or None."""
    found: Any = values
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and value >= 0 else value
