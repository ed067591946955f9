"""Texts with two entities and the relation between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from llm_arch.data.cells import text_fault
from llm_arch.data.labels import in_order, label_fault, unknown_label
from llm_arch.data.module import DataModule
from llm_arch.data.origins import NOWHERE, Origins, places_of
from llm_arch.data.semeval import Names, read_semeval
from llm_arch.data.sources import Source
from llm_arch.types import LabelSpace, Prediction, UserError

HEAD, TAIL = ("[E1]", "[/E1]"), ("[E2]", "[/E2]")


class RelationExtractionData(DataModule):
    """Rows with a text, the places of two entities in it, and the relation from the head to the tail.

    The entities are marked in the text by four tokens that are added to the tokenizer, [E1] and [/E1] around the head,
    [E2] and [/E2] around the tail (Baldini Soares et al. 2019), whichever comes first. Files are .jsonl or .parquet
    with `{"text": …, "head": {"start", "end"}, "tail": {"start", "end"}, "label": …}` in characters, end exclusive, or
    .txt as SemEval-2010 Task 8 has them, where e1 is the head. A label that says a direction by itself ends in (e1,e2)
    or (e2,e1).

    Of a text longer than `max_length` the tokens furthest from both entities are left out, those between the entities
    too; the markers always stay.

    Args:
        train: see `DataModule`, as for all arguments up to `cache_dir`.
        validation: see `DataModule`.
        test: see `DataModule`.
        text_column: column of the text.
        head_column: column of the place of the first entity.
        tail_column: column of the place of the second.
        label_column: column of the relation.
        labels: the relations in the order of the logits; None discovers them in the training rows.
        **options: the options of `DataModule`.
    """

    column_options = "--data.text_column, --data.head_column, --data.tail_column, --data.label_column"
    added_tokens = (*HEAD, *TAIL)

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        text_column: str = "text",
        head_column: str = "head",
        tail_column: str = "tail",
        label_column: str = "label",
        labels: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        self.names = Names(text_column, head_column, tail_column, label_column)
        self.given_labels = labels
        if labels:
            self.labels_from = "in data.labels"

    # What a row is

    @property
    def columns(self) -> dict[str, bool]:
        """Text and entities always, the relation where there is something to learn or measure."""
        return {self.names.text: True, self.names.head: True, self.names.tail: True, self.names.label: False}

    def source(self, name: str) -> Source:
        """A .txt file is one of SemEval-2010 Task 8, whose own names end in .TXT."""
        read = partial(read_semeval, names=self.names)
        return Source(name, self.language, {".txt": read, ".TXT": read}, self.columns)

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells, and entities that can't be."""
        if fault := text_fault(values, [self.names.text]):
            return fault
        text = values[self.names.text]
        for column in (self.names.head, self.names.tail):
            if fault := _span_fault(values[column], text, column):
                return fault
        (first, end), (second, last) = sorted(map(_place, (values[self.names.head], values[self.names.tail])))
        if second < end:
            same = (first, end) == (second, last)
            return (
                f"{self.names.head!r} and {self.names.tail!r} {'are the same characters' if same else 'overlap'} "
                f"({first} to {end}, {second} to {last}); give two entities apart from each other"
            )
        return label_fault(values[self.names.label], self.names.label) if labelled else None

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text."""
        return values[self.names.text], None

    # What is kept of it

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The text, the relation, and the markers with the characters of their entities."""
        numbers = pa.list_(pa.int32())
        return {
            "text": pa.string(),
            "label": pa.string(),
            "word_token": numbers,
            "word_start": numbers,
            "word_end": numbers,
        }

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """Text and relation; `encode` gives the rest."""
        label = str(values[self.names.label]).strip() if labelled else None
        return {"text": values[self.names.text], "label": label}

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize texts with their markers, and cut what is too long around the entities.

        The "words" are [E1], [/E1], [E2] and [/E2] of each row, in this order: `word_token` is where they stand, and
        `word_start` and `word_end` are the characters of the entity that they mark.
        """
        found = [self._marked(values) for values in rows]
        texts = [text for text, _ in found]
        encodings = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False).encodings
        columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "word_token", "word_start", "word_end")}
        truncated = 0
        for values, (_, characters), encoding in zip(rows, found, encodings, strict=True):
            ids, places = encoding.ids, [encoding.char_to_token(character) for character in characters]
            if len(ids) > self.max_length:
                chosen = self._nearest(places, encoding.special_tokens_mask)
                ids, places = [ids[i] for i in chosen], [chosen.index(place) for place in places]
                truncated += 1
            spans = [_place(values[column]) for column in (self.names.head, self.names.tail) for _ in range(2)]
            starts, ends = zip(*spans, strict=True)
            for name, value in zip(columns, (ids, places, list(starts), list(ends)), strict=True):
                columns[name].append(value)
        return columns | {"token_type_ids": [None] * len(rows)}, {"truncated": truncated}

    def _marked(self, values: Mapping[str, Any]) -> tuple[str, list[int]]:
        """The text with its markers, and where [E1], [/E1], [E2] and [/E2] begin in it."""
        text, marks, end = values[self.names.text], [], 0
        spans = [(_place(values[self.names.head]), HEAD), (_place(values[self.names.tail]), TAIL)]
        for (start, stop), (opening, closing) in sorted(spans):
            # In front of the space, so that tokenizers that make it part of the word behind it still do.
            start -= start > end and text[start - 1] == " "
            marks += [(start, opening), (stop, closing)]
            end = stop
        parts, places, length, last = [], {}, 0, 0
        for at, marker in marks:
            places[marker] = length + at - last
            parts += [text[last:at], marker]
            length, last = places[marker] + len(marker), at
        return "".join([*parts, text[last:]]), [places[marker] for marker in self.added_tokens]

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """In characters of the text without markers, cut as `encode` does."""
        marked, marks = self._marked(values)
        (encoding,) = self.tokenizer([marked], return_attention_mask=False, return_token_type_ids=False).encodings
        lengths = {place: len(marker) for place, marker in zip(marks, self.added_tokens, strict=True)}

        def before(character: int) -> int:
            """How many characters of markers stand before one of the marked text."""
            return sum(length for place, length in lengths.items() if place < character)

        places = [
            (0, start - before(start), end - before(end)) if text == 0 and start not in lengths else NOWHERE
            for text, start, end in places_of(encoding)
        ]
        if len(places) > self.max_length:
            tokens = [encoding.char_to_token(character) for character in marks]
            places = [places[i] for i in self._nearest(tokens, encoding.special_tokens_mask)]
        return Origins({self.names.text: values[self.names.text]}, places)

    def _nearest(self, places: Sequence[int], special: Sequence[int]) -> list[int]:
        """Which tokens of a long row to keep: markers, then the entities, then what is nearest to either, in order."""
        needed = sum(special) + len(places)
        if needed > self.max_length:
            raise UserError(
                f"data.max_length is {self.max_length}, but the markers of two entities and special tokens need "
                f"{needed}; raise it"
            )
        inside = {i for opening, closing in (places[:2], places[2:]) for i in range(opening + 1, closing)}

        def order(i: int) -> tuple[int, int]:
            if special[i] or i in places:
                return 0, 0
            return 1 if i in inside else 2, min(abs(i - place) for place in places)

        return sorted(sorted(range(len(special)), key=order)[: self.max_length])

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The columns that prediction needs, and what was predicted."""
        return self.asked_of(values) | {self.names.label: prediction.label}  # type: ignore[attr-defined]

    # Labels

    def labels_of(self, stored: Mapping[str, Any]) -> list[str]:
        """The relation of a row."""
        return [] if stored["label"] is None else [stored["label"]]

    @cached_property
    def label_space(self) -> LabelSpace:
        """Discovered in the training rows (sorted) or given."""
        if "train" not in self.sources:
            if self.given_labels is None:
                raise UserError("without training rows the relations must be given with data.labels")
            return LabelSpace(tuple(self.given_labels))
        counts = {label: count for label, (count, _) in self.load_source(self.sources["train"])[1]["labels"].items()}
        names = self.given_labels or in_order(counts)
        return LabelSpace(tuple(names), tuple(counts.get(name, 0) for name in names))

    def check(self, name: str, facts: dict[str, Any]) -> None:
        """Every relation of a split must be known."""
        for label, (count, line) in facts["labels"].items():
            if label not in self.label_space.names:
                raise unknown_label(name, line, label, count, self.label_space, self.labels_from)

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """`label`: (B,) classes."""
        return {"label": torch.tensor([self._place[label] for label in columns["label"]])}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.label_space.names)}

    def record(self) -> dict[str, Any]:
        """Columns and limits that reading new rows needs."""
        columns = {f"{name}_column": column for name, column in self.names._asdict().items()}
        return super().record() | columns


def _place(span: Mapping[str, Any]) -> tuple[int, int]:
    return span["start"], span["end"]


def _span_fault(span: Any, text: str, column: str) -> str | None:
    """What is wrong with the place of an entity, as the end of a sentence, or None."""
    if not (isinstance(span, Mapping) and {"start", "end"} <= span.keys()):
        return f'{column!r} holds {span!r}; write the characters of the entity as {{"start": 4, "end": 9}}'
    start, end = _place(span)
    if any(type(place) is not int for place in (start, end)):
        return f"{column!r} goes from {start!r} to {end!r}; start and end are whole numbers"
    if not 0 <= start < end <= len(text):
        return f"{column!r} goes from {start} to {end}, but the text has {len(text)} characters, end exclusive"
    if not text[start:end].strip():
        return f"{column!r} goes from {start} to {end}, where there is white space alone; fix the row"
    return None
