"""What a row means, and reading rows into tokens on disk: the part of a data module that needs no batches."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from torch import Tensor

from llm_arch.corpus.surfaces import size
from llm_arch.data.origins import Origins, places_of
from llm_arch.data.reading import encoded_rows, note_bad_row
from llm_arch.data.sources import Row, Source
from llm_arch.data.store import key_of, stored
from llm_arch.data.tokenizers import fingerprint, load_tokenizer, token_ids
from llm_arch.types import Configured, LabelSpace, Prediction, UserError

# Raise when the meaning of stored rows changes: older caches are then made anew.
_STORE_VERSION = 3


class RowFormat(Configured, ABC):
    """Rows with some meaning, tokenized and kept on disk.

    Args:
        tokenizer: a directory, hub id or `package:NAME/FOLDER`, or None while there is none.
        max_length: longest sequence in tokens, special tokens included.
        language: language of the embedded set.
        on_bad_row: `error` stops at a row that can't be used, `skip` leaves it out and counts it.
        cache: folder of the cache.

    Attributes:
        column_options: the options that name columns, for a message about one that is not there.
        added_tokens: special tokens that the format adds to any tokenizer, such as markers.
        labels_from: where the label space comes from, for a message about a label that it lacks.
    """

    column_options = "--data.text_column, --data.label_column"
    added_tokens: tuple[str, ...] = ()
    labels_from: str = "in the training rows"

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
        """Stored columns beyond `input_ids`, `token_type_ids`, `line` and `key`; from `kept`, or from `encode`."""

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

    def metric_texts(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """What metrics over texts need of a batch, by name, a value for each row: goes into `Batch.texts`."""
        return {}

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """The labels, discovered in the training rows or given."""

    def columns_of(self, values: Mapping[str, Any]) -> dict[str, bool]:
        """As `columns`, for one row, in formats that take rows of several kinds."""
        return self.columns

    def source(self, name: str) -> Source:
        """Where rows come from, for formats that read files of their own kind."""
        return Source(name, self.language, columns=self.columns)

    def rows(self, source: Source, labelled: bool, facts: dict[str, Any]) -> Iterable[Row]:
        """The rows of a source, for formats that must see all before they understand one.

        Args:
            source: where they are.
            labelled: whether labels are needed.
            facts: what is found out on the way may be added here, JSON-able.
        """
        return source.rows()

    def group(self, values: Mapping[str, Any]) -> Any:
        """What rows that belong together have in common: all on one side when a split is cut off. Here: their texts."""
        return self.texts(values)

    def labels_of(self, stored: Mapping[str, Any]) -> list[str]:
        """The labels of one row, to be counted, from its columns of `schema`."""
        return []

    def notes(self, source: str, facts: Mapping[str, Any]) -> list[str]:
        """What a person should know of a source, as sentences."""
        return []

    def check(self, name: str, facts: dict[str, Any]) -> None:  # noqa: B027 - a hook
        """Raise UserError when a split does not fit the label space."""

    def record(self) -> dict[str, Any]:
        """The arguments that reading new rows for a trained model needs, JSON-able."""
        return {"max_length": self.max_length, "language": self.language}

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """A prediction with what only the texts of its row can tell, such as the words of a span."""
        return prediction

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """A training row that says what a prediction says.

        Args:
            values: the row that the prediction is about.
            prediction: of the head that goes with this format, complete.

        Raises:
            UserError: this format can't write its rows.
        """
        raise UserError(f"{type(self).__name__} makes no training rows of predictions; leave --as-rows out")

    def asked_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row that prediction needs."""
        return {name: values[name] for name, always in self.columns_of(values).items() if always}

    # Tokens

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer."""
        tokenizer = load_tokenizer(self.tokenizer_place())
        if self.added_tokens:
            tokenizer.add_special_tokens(
                {"extra_special_tokens": list(self.added_tokens)}, replace_extra_special_tokens=False
            )
        return tokenizer

    def tokenizer_place(self) -> str:
        """Where the tokenizer lies, for formats that may make one themselves."""
        if self.tokenizer_name is None:
            raise UserError("data.tokenizer is not set, and the backbone names none: name a tokenizer directory")
        return self.tokenizer_name

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Read rows by another tokenizer from now on; the labels stay."""
        for name in [*vars(self)]:
            if name != "label_space" and isinstance(getattr(type(self), name, None), cached_property):
                del self.__dict__[name]  # may have come of the old one, and is made anew when it is needed
        self._stored = {}
        self.__dict__["tokenizer"] = tokenizer

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer has, those that the format added among them."""
        return size(self.tokenizer)

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize rows, on all cores: the texts of each, or pairs of texts, cut at `max_length`.

        A format that does otherwise overrides this. Its columns may be of the `schema` too, and `make_batch` knows
        more of them: see there.

        Args:
            rows: rows without fault; either all have a second text or none.
            labelled: whether labels are needed.

        Returns:
            Columns `input_ids` and `token_type_ids` (None without second texts), and counts to add to the facts, of
            which `truncated` is how many rows were cut. A row that can't be used, as only its tokens show, has no
            `input_ids`; a column `fault` may say why, as the end of a sentence.
        """
        pairs = [self.texts(values) for values in rows]
        seconds = [b for _, b in pairs if b is not None]
        ids, types, cut = token_ids(self.tokenizer, [a for a, _ in pairs], seconds or None, self.max_length)
        return {"input_ids": ids, "token_type_ids": types or [None] * len(pairs)}, {"truncated": sum(cut)}

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """Which characters of its texts each token of a row shows, as `encode` reads it to predict.

        A format whose `encode` does otherwise than this one's overrides this too.
        """
        first, second = self.texts(values)
        backend = self.tokenizer.backend_tokenizer
        backend.enable_truncation(self.max_length, direction=self.tokenizer.truncation_side)
        backend.no_padding()
        names = [name for name, always in self.columns_of(values).items() if always]
        texts = [first] if second is None else [first, second]
        encoding = backend.encode(*texts)
        return Origins(dict(zip(names, texts, strict=False)), places_of(encoding))

    def load_source(self, source_name: str, labelled: bool = True) -> tuple[Any, dict[str, Any]]:
        """Rows of one source, memory-mapped, and facts about them; read and tokenized when they are not kept yet.

        Raises:
            UserError: naming the source and what is wrong with it.
        """
        if (source_name, labelled) in self._stored:
            return self._stored[source_name, labelled]
        source = self.source(source_name)
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
        rows, facts = stored(self.cache / "data", key_of(parts), schema, partial(encoded_rows, self, source, labelled))
        facts["fingerprint"] = parts["source"]
        if facts["bad"] and self.on_bad_row == "error":  # stored by an earlier run that skipped them
            line, fault = facts["bad"][0]
            note_bad_row(self, source_name, line, fault, facts)
        if facts["rows"] == 0:
            skipped = f" ({facts['bad_rows']} bad rows were skipped)" if facts["bad_rows"] else ""
            raise UserError(f"{source_name} has no rows to use{skipped}; add some, or name another file")
        facts["notes"] += self.notes(source_name, facts)
        self._stored[source_name, labelled] = rows, facts
        return rows, facts


def _code_of(kind: type) -> str:
    """A format of the user's own changes while they write it; rows that it read before are then read anew."""
    if kind.__module__.startswith("llm_arch."):
        return ""
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
