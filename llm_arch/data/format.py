"""What a row means, and reading rows into tokens on disk: the part of a data module that needs no batches."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from torch import Tensor

from llm_arch.data.progress import progress
from llm_arch.data.sources import Row, Source
from llm_arch.data.store import key_of, stored
from llm_arch.data.tokenizers import fingerprint, load_tokenizer
from llm_arch.types import Configured, LabelSpace, UserError

# Raise when the meaning of stored rows changes: older caches are then made anew.
_STORE_VERSION = 2
_CHUNK = 1000
_KEPT_BAD_ROWS = 10_000


class RowFormat(Configured, ABC):
    """Rows with some meaning, tokenized and kept on disk.

    Args:
        tokenizer: a directory, hub id or `package:NAME/FOLDER`, or None while there is none.
        max_length: longest sequence in tokens, special tokens included.
        language: language of the embedded set.
        on_bad_row: `error` stops at a row that can't be used, `skip` leaves it out and counts it.
        cache: folder of the cache.
    """

    def __init__(
        self, tokenizer: str | None, max_length: int, language: str, on_bad_row: Literal["error", "skip"], cache: Path
    ) -> None:
        super().__init__()
        self.tokenizer_name = tokenizer
        self.max_length = max_length
        self.language = language
        self.on_bad_row = on_bad_row
        self.cache = cache
        self._stored: dict[tuple[str, bool], tuple[Any, dict[str, Any]]] = {}

    @property
    @abstractmethod
    def columns(self) -> dict[str, bool]:
        """Columns that a row needs, each with whether prediction needs it too."""

    @property
    @abstractmethod
    def schema(self) -> dict[str, pa.DataType]:
        """Stored columns beyond `input_ids`, `token_type_ids`, `line` and `key`."""

    @abstractmethod
    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """What is wrong with a row, as the end of a sentence, or None."""

    @abstractmethod
    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text of a row, and the second one of a pair."""

    @abstractmethod
    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The stored columns of `schema` for one row."""

    @abstractmethod
    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """The labels of a batch as the head wants them."""

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """The labels, discovered in the training rows or given."""

    def labels_of(self, kept: Mapping[str, Any]) -> list[str]:
        """The labels of one row, to be counted."""
        return []

    def check(self, name: str, facts: dict[str, Any]) -> None:  # noqa: B027 - a hook
        """Raise UserError when a split does not fit the label space."""

    def record(self) -> dict[str, Any]:
        """The arguments that reading new rows for a trained model needs, JSON-able."""
        return {"max_length": self.max_length, "language": self.language}

    # Tokens

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer."""
        if self.tokenizer_name is None:
            raise UserError("data.tokenizer is not set, and the backbone names none: name a tokenizer directory")
        return load_tokenizer(self.tokenizer_name)

    def encode(self, pairs: list[tuple[str, str | None]]) -> tuple[dict[str, list[Any]], int]:
        """Tokenize texts or pairs of texts, on all cores.

        Args:
            pairs: text and second text of each row; either all rows have a second text or none.

        Returns:
            Columns `input_ids` and `token_type_ids` (None without second texts), and how many rows were cut.
        """
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        paired = bool(second) and second[0] is not None
        encoded = self.tokenizer(
            first, second if paired else None, truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        types = encoded.get("token_type_ids") if paired else None
        cut = sum(bool(e.overflowing) for e in encoded.encodings)
        return {"input_ids": encoded["input_ids"], "token_type_ids": types or [None] * len(pairs)}, cut

    def _read(self, source: Source, labelled: bool, facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        needed = [name for name, always in self.columns.items() if labelled or always]
        facts.update(rows=0, tokens=0, truncated=0, unknown=0, words=0, labels={}, bad=[], bad_rows=0)
        unknown_id = self.tokenizer.unk_token_id
        with progress(f"tokenizing {source.name}") as advance:
            for chunk in _chunks(source.rows()):
                good: list[Row] = []
                for row in chunk:
                    if row.fault is None and facts["rows"] == 0 and not good:
                        _check_columns(source.name, needed, row.values)
                    fault = row.fault or _missing(needed, row.values) or self.fault(row.values, labelled)
                    if fault is None:
                        good.append(row)
                    else:
                        self._bad(source.name, row.line, fault, facts)
                if not good:
                    continue
                columns, cut = self.encode([self.texts(row.values) for row in good])
                full = [i for i, ids in enumerate(columns["input_ids"]) if ids]
                if len(full) < len(good):  # a mean over no tokens would be NaN
                    for i in sorted(set(range(len(good))) - set(full)):
                        self._bad(source.name, good[i].line, "gives no tokens with this tokenizer; fix the row", facts)
                    good = [good[i] for i in full]
                    columns = {name: [values[i] for i in full] for name, values in columns.items()}
                pairs = [self.texts(row.values) for row in good]
                kept = [self.kept(row.values, labelled) for row in good]
                for name in self.schema:
                    columns[name] = [k[name] for k in kept]
                columns["line"] = [row.line for row in good]
                columns["key"] = [_text_key(pair) for pair in pairs]
                facts["rows"] += len(good)
                facts["truncated"] += cut
                facts["tokens"] += sum(map(len, columns["input_ids"]))
                facts["words"] += sum(len(a.split()) + len((b or "").split()) for a, b in pairs)
                if unknown_id is not None:
                    facts["unknown"] += sum(ids.count(unknown_id) for ids in columns["input_ids"])
                for row, values in zip(good, kept, strict=True):
                    for label in self.labels_of(values):
                        facts["labels"].setdefault(label, [0, row.line])[0] += 1
                advance(len(good))
                yield columns
        facts["notes"] = source.notes

    def _bad(self, source: str, line: int, fault: str, facts: dict[str, Any]) -> None:
        if self.on_bad_row == "error":
            raise UserError(f"{source}, line {line}: {fault} (or leave such rows out with --data.on_bad_row skip)")
        facts["bad_rows"] += 1
        if len(facts["bad"]) < _KEPT_BAD_ROWS:
            facts["bad"].append([line, fault])

    def load_source(self, source_name: str, labelled: bool = True) -> tuple[Any, dict[str, Any]]:
        """Rows of one source, memory-mapped, and facts about them; read and tokenized when they are not kept yet.

        Raises:
            UserError: naming the source and what is wrong with it.
        """
        if (source_name, labelled) in self._stored:
            return self._stored[source_name, labelled]
        source = Source(source_name, self.language)
        parts = {
            "version": _STORE_VERSION,
            "code": _code_of(type(self)),
            "source": source.fingerprint(),
            "format": self.class_path,
            "columns": self.record(),
            "labelled": labelled,
            "tokenizer": fingerprint(self.tokenizer),
        }
        types = {"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.int8()), **self.schema}
        schema = pa.schema([*types.items(), ("line", pa.int64()), ("key", pa.int64())])
        rows, facts = stored(self.cache / "data", key_of(parts), schema, partial(self._read, source, labelled))
        if facts["bad"] and self.on_bad_row == "error":  # stored by an earlier run that skipped them
            line, fault = facts["bad"][0]
            self._bad(source_name, line, fault, facts)
        if facts["rows"] == 0:
            skipped = f" ({facts['bad_rows']} bad rows were skipped)" if facts["bad_rows"] else ""
            raise UserError(f"{source_name} has no rows to use{skipped}; add some, or name another file")
        self._stored[source_name, labelled] = rows, facts
        return rows, facts


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _missing(needed: list[str], values: Mapping[str, Any]) -> str | None:
    absent = [name for name in needed if values.get(name) is None]
    return f"has no {absent[0]!r}" if absent else None


def _check_columns(source: str, needed: list[str], found: Mapping[str, Any]) -> None:
    for name in needed:
        if name not in found:
            raise UserError(
                f"{source} has no column {name!r}; it has: {', '.join(map(str, found))}. "
                f"Name yours with --data.text_column, --data.label_column and the like"
            )


def _text_key(pair: tuple[str, str | None]) -> int:
    """Equal for equal texts; 64 bits, so that a column of them stays small."""
    return int.from_bytes(hashlib.sha256(repr(pair).encode(errors="surrogatepass")).digest()[:8], "big", signed=True)


def _code_of(kind: type) -> str:
    """A format of the user's own changes while they write it; rows that it read before are then read anew."""
    if kind.__module__.startswith("llm_arch."):
        return ""
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
