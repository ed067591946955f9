"""Texts whose words carry tags: named entities, slots of commands, and other spans with a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from llm_arch.data.cells import text_fault
from llm_arch.data.conll import Columns, read_conll
from llm_arch.data.files import Row, read_delimited
from llm_arch.data.module import DataModule
from llm_arch.data.origins import Origins, places_of
from llm_arch.data.sources import ANY_SUFFIX, Source
from llm_arch.data.spans import span_fault, text_words
from llm_arch.data.tagged import OnInvalidTag, in_scheme, tags_among, tokens_fault
from llm_arch.data.windows import content_of, first_tokens, row_of_words
from llm_arch.data.words import Word, joined
from llm_arch.tags import Scheme, split_tag, tag_names, tags_of
from llm_arch.types import LabelSpace, Prediction, UserError


class TokenClassificationData(DataModule):
    """Rows whose words carry tags. Each row comes in one of two forms, which its columns tell.

    - **Tokens and tags**, two lists: .jsonl, .parquet, hub sets, and CoNLL-style files (a token a line with its tag, an
      empty line behind each sentence), which is how every other suffix is read, and a .tsv without such a header. The
      text of the row is its tokens joined by single spaces, and what is predicted is given in characters of that text.
    - **A text and spans**: `spans` is a list of {"start", "end", "label"} in characters, end exclusive, that do not
      overlap; empty for none. Runs of letters and digits are the words, any other character is one by itself, and so
      is each character of a script without spaces. Where a span begins or ends inside a word, the word is cut there in
      training (a note counts such rows). Words that share a token are one word: one state carries one tag.

    Tags may be of BIO, IOB1, IO, BIOES, BILOU or BMES: the scheme of a source is told from all its tags, and they are
    turned into `scheme`. Rows longer than `max_length` are never cut, but read in overlapping windows of which each
    word counts in the one that shows most of what surrounds it.

    Args:
        train: see `DataModule`, as for all arguments up to `cache_dir`.
        validation: see `DataModule`.
        test: see `DataModule`.
        text_column: column of the text.
        spans_column: column of its spans.
        tokens_column: column of the tokens, instead of a text.
        tags_column: column of their tags.
        token_column: place of the token in lines of CoNLL-style files, from 0; negative from the end.
        tag_column: place of the tag in them.
        delimiter: what separates their columns; None for tabs where lines have them, else any white space.
        scheme: the scheme of the tags that the model learns: `bio`, `bioes` or `io`.
        on_invalid_tag: a tag that can't stand where it does, as I after O: `repair` lets it begin an entity and counts
            it, `error` makes the row a bad row.
        stride: tokens that neighbouring windows share; None for a quarter of `max_length`.
        labels: the entity types, as person; None discovers them in the training rows.
        **options: the options of `DataModule`.
    """

    column_options = "--data.text_column, --data.spans_column, --data.tokens_column, --data.tags_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        text_column: str = "text",
        spans_column: str = "spans",
        tokens_column: str = "tokens",
        tags_column: str = "tags",
        token_column: int = 0,
        tag_column: int = -1,
        delimiter: str | None = None,
        scheme: Scheme = "bio",
        on_invalid_tag: OnInvalidTag = "repair",
        stride: int | None = None,
        labels: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        self.text_column = text_column
        self.spans_column = spans_column
        self.tokens_column = tokens_column
        self.tags_column = tags_column
        self.conll = Columns(token_column, tag_column, delimiter)
        self.scheme = scheme
        self.on_invalid_tag = on_invalid_tag
        self.given_labels = labels
        if labels:
            self.labels_from = "in data.labels"
        self.stride = self.max_length // 4 if stride is None else stride
        if delimiter == "":
            raise UserError("data.delimiter must not be empty; leave it out for tabs or any white space")
        if not 0 <= self.stride < self.max_length:
            raise UserError(f"data.stride must be at least 0 and below data.max_length, got {stride}")

    # What a row is

    @property
    def columns(self) -> dict[str, bool]:
        """The text always, the spans where there is something to learn or measure."""
        return {self.text_column: True, self.spans_column: False}

    def columns_of(self, values: Mapping[str, Any]) -> dict[str, bool]:
        """Tokens and tags for rows that have them."""
        return {self.tokens_column: True, self.tags_column: False} if self._by_tokens(values) else self.columns

    def _by_tokens(self, values: Mapping[str, Any]) -> bool:
        tokens, tags, text = (
            values.get(c) is not None for c in (self.tokens_column, self.tags_column, self.text_column)
        )
        return tokens and (tags or not text)

    def source(self, name: str) -> Source:
        """Files of other suffixes than the tabular ones are CoNLL-style."""
        conll = partial(read_conll, columns=self.conll, tokens=self.tokens_column, tags=self.tags_column)

        def read_tsv(path: Path) -> Iterator[Row]:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                header = file.readline().rstrip("\n").split("\t")
            return read_delimited(path) if {self.text_column, self.tokens_column} & set(header) else conll(path)

        return Source(name, self.language, {".tsv": read_tsv, ANY_SUFFIX: conll})

    def rows(self, source: Source, labelled: bool, facts: dict[str, Any]) -> Iterable[Row]:
        """Tags in the model's scheme."""
        found = tags_among(source.rows(), self.tags_column) if labelled else None
        if found is None:
            return source.rows()
        facts["scheme"] = found.name
        columns = self.tokens_column, self.tags_column
        return in_scheme(self.scheme, source.rows(), found, columns, self.on_invalid_tag, facts)

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells, and spans that can't be."""
        if self._by_tokens(values):
            return tokens_fault(values[self.tokens_column], self.tokens_column)
        if fault := text_fault(values, (self.text_column,)):
            return fault
        return span_fault(values[self.spans_column], values[self.text_column], self.spans_column) if labelled else None

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text, or the tokens joined by spaces."""
        return " ".join(values[self.tokens_column]) if self._by_tokens(values) else values[self.text_column], None

    # What is kept of it

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The text, the windows, and the words with their tags."""
        numbers = pa.list_(pa.int32())
        words = {"word_token": numbers, "word_start": numbers, "word_end": numbers, "tags": pa.list_(pa.string())}
        return {"text": pa.string(), "windows": numbers, **words}

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The text; `encode` gives the rest."""
        return {"text": self.texts(values)[0]}

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize whole texts as any other, find the words in them, and make windows of what is too long.

        The columns are those that `make_batch` knows, and `tags`. Of the counts `windowed` is how many rows are longer
        than `max_length`, and `inside` how many have a span that begins or ends inside a word.
        """
        texts = [self.texts(values)[0] for values in rows]
        encodings = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False).encodings
        found: list[dict[str, Any]] = []
        counts = {"windowed": 0, "inside": 0, "words": 0}
        for values, encoding in zip(rows, encodings, strict=True):
            first, count = content_of(encoding.special_tokens_mask)
            words, tokens, tags, inside = self._words(values, encoding.offsets[first : first + count], labelled)
            columns = row_of_words(encoding.ids, first, count, words, tokens, self.max_length, self.stride)
            found.append(columns | {"tags": tags})
            counts["windowed"] += columns["windows"] is not None
            counts["inside"] += inside
            counts["words"] += len(words)
        return {name: [row[name] for row in found] for name in found[0]}, counts

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """In windows, as `encode` makes them."""
        text = self.texts(values)[0]
        (encoding,) = self.tokenizer([text], return_attention_mask=False, return_token_type_ids=False).encodings
        first, count = content_of(encoding.special_tokens_mask)
        words, tokens, _, _ = self._words(values, encoding.offsets[first : first + count], False)
        places: list[Any] = places_of(encoding)  # cut as tokens are
        row = row_of_words(places, first, count, words, tokens, self.max_length, self.stride)
        return Origins({next(iter(self.columns_of(values))): text}, row["input_ids"])

    def _words(
        self, values: Mapping[str, Any], offsets: Sequence[Word], labelled: bool
    ) -> tuple[list[Word], list[int], list[str], bool]:
        """The words of a row, the token of each, their tags, and whether a span has a border inside a word."""
        if self._by_tokens(values):
            words = joined(values[self.tokens_column])
            return words, first_tokens(words, offsets), values[self.tags_column] if labelled else [], False
        spans = values[self.spans_column] if labelled else []
        words, tokens, entities, inside = text_words(values[self.text_column], spans, offsets)
        return words, tokens, tags_of(entities, len(words), self.scheme) if labelled else [], inside

    def labels_of(self, stored: Mapping[str, Any]) -> list[str]:
        """The tags of all words."""
        return list(stored["tags"])

    def notes(self, source: str, facts: Mapping[str, Any]) -> list[str]:
        """What was made of tags, long rows and spans."""
        found = []
        if facts.get("scheme", self.scheme) != self.scheme:
            found.append(f"the tags of {source} are {facts['scheme']}, and are learnt as {self.scheme}")
        repaired, line = facts.get("repaired", (0, 0))
        if repaired:
            found.append(
                f"tags of {source} that can't stand where they do: {repaired:,}, the first in line {line}; "
                f"they were repaired: an entity begins or ends there"
            )
        if facts["windowed"]:
            found.append(
                f"rows of {source} longer than {self.max_length} tokens: {facts['windowed']:,}; nothing is cut, they "
                f"are read in windows that share {self.stride} tokens"
            )
        if facts["inside"]:
            found.append(
                f"rows of {source} with a span that begins or ends inside a word: {facts['inside']:,}; the word is cut "
                f"there in training and measuring, and stays whole in prediction"
            )
        return found

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The text, and the entities as spans, also where the row has tokens."""
        spans = [{"start": e.start, "end": e.end, "label": e.label} for e in prediction.entities]  # type: ignore[attr-defined]
        return {self.text_column: self.texts(values)[0], self.spans_column: spans}

    # Labels

    @cached_property
    def label_space(self) -> LabelSpace:
        """The tags of all entity types, which are discovered in the training rows or given."""
        if "train" not in self.sources:
            if self.given_labels is None:
                raise UserError("without training rows the entity types must be given with data.labels")
            return LabelSpace(tag_names(self.given_labels, self.scheme))
        source = self.sources["train"]
        counts = {tag: count for tag, (count, _) in self.load_source(source)[1]["labels"].items()}
        labels = self.given_labels or {split_tag(tag)[1] for tag in counts} - {""}
        if not labels:
            raise UserError(f"{source} has no entities: no word has a tag but O; name a file that has some")
        names = tag_names(labels, self.scheme)
        return LabelSpace(names, tuple(counts.get(name, 0) for name in names))

    def check(self, name: str, facts: dict[str, Any]) -> None:
        """Every entity type of a split must be known."""
        known = {split_tag(tag)[1]: None for tag in self.label_space.names if tag != "O"}
        for tag, (_, line) in facts["labels"].items():
            label = split_tag(tag)[1]
            if label and label not in known:
                raise UserError(
                    f"{name}, line {line}: the entity type {label!r} does not occur {self.labels_from}; "
                    f"known types: {', '.join([*known][:12])}{' …' if len(known) > 12 else ''}"
                )

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """`tag`: (W,) classes of the words, row by row."""
        return {"tag": torch.tensor([self._place[tag] for tags in columns["tags"] for tag in tags])}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.label_space.names)}

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """The entities with their words."""
        text = texts[0]
        entities = [replace(entity, text=text[entity.start : entity.end]) for entity in prediction.entities]  # type: ignore[attr-defined]
        return replace(prediction, entities=entities)  # type: ignore[call-arg]

    def record(self) -> dict[str, Any]:
        """Columns, scheme and limits that reading new rows needs."""
        return super().record() | {
            "text_column": self.text_column,
            "spans_column": self.spans_column,
            "tokens_column": self.tokens_column,
            "tags_column": self.tags_column,
            "token_column": self.conll.token,
            "tag_column": self.conll.tag,
            "delimiter": self.conll.delimiter,
            "scheme": self.scheme,
            "on_invalid_tag": self.on_invalid_tag,
            "stride": self.stride,
        }
