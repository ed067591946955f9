"""Questions with a text that holds their answer, or does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from llm_arch.data.answers import Names, answers_fault, answers_of, characters, shown_tokens, token_span
from llm_arch.data.cells import text_fault
from llm_arch.data.module import DataModule
from llm_arch.data.origins import Origins, places_of
from llm_arch.data.sources import Row, Source
from llm_arch.data.squad import read_squad
from llm_arch.data.windows import windowed
from llm_arch.types import LabelSpace, Prediction, UserError

_ANSWERED, _UNANSWERED = "with an answer", "without an answer"


class QuestionAnsweringData(DataModule):
    """Rows with a question, a context, and where in the context the answer stands, if it does.

    Answers come in one of two forms, which the columns of a row tell:

    - `answers`: {"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}: several right answers,
      or none when the question has no answer. Files of SQuAD's nested json (.json) are read so.
    - `answer` and `answer_start`: one answer, empty for none. `answer_start` may be left out where the answer stands in
      the context only once.

    `answer_start` counts characters from 0. The model reads the question with the context; a context that is too long
    for that is read in overlapping windows, each with the whole question, and nothing of it is cut. Rows of one context
    stay together when validation rows are cut off.

    Args:
        train: see `DataModule`, as for all arguments up to `cache_dir`; `language` is also that of the answers, whose
            articles do not count when they are compared.
        validation: see `DataModule`.
        test: see `DataModule`.
        question_column: column of the question.
        context_column: column of the context.
        answers_column: column of the answers.
        answer_column: column of a single answer, for rows without `answers_column`.
        answer_start_column: column of the place of the single answer.
        id_column: column of an id that no two questions of a source may share; rows without one are fine. None for no
            such column.
        stride: tokens of the context that neighbouring windows share; None for a quarter of `max_length`.
        **options: the options of `DataModule`.
    """

    column_options = "--data.question_column, --data.context_column, --data.answers_column, --data.answer_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        question_column: str = "question",
        context_column: str = "context",
        answers_column: str = "answers",
        answer_column: str = "answer",
        answer_start_column: str = "answer_start",
        id_column: str | None = "id",
        stride: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        self.names = Names(
            question_column, context_column, answers_column, answer_column, answer_start_column, id_column
        )
        self.stride = self.max_length // 4 if stride is None else stride
        if not 0 <= self.stride < self.max_length:
            raise UserError(f"data.stride must be at least 0 and below data.max_length, got {stride}")

    # What a row is

    @property
    def columns(self) -> dict[str, bool]:
        """Question and context always, answers where there is something to learn or measure."""
        return {self.names.question: True, self.names.context: True, self.names.answers: False}

    def columns_of(self, values: Mapping[str, Any]) -> dict[str, bool]:
        """No answers for rows with a column for a single one, which may be empty."""
        if values.get(self.names.answers) is None and self.names.answer in values:
            return {name: always for name, always in self.columns.items() if always}
        return self.columns

    def source(self, name: str) -> Source:
        """A .json file is one of SQuAD."""
        return Source(name, self.language, {".json": partial(read_squad, names=self.names)})

    def rows(self, source: Source, labelled: bool, facts: dict[str, Any]) -> Iterator[Row]:
        """Every id once."""
        first: dict[Any, int] = {}
        for row in source.rows():
            own = row.values.get(self.names.id) if self.names.id is not None else None
            if isinstance(own, str | int) and own != "" and row.fault is None:
                line = first.setdefault(own, row.line)
                if line != row.line:
                    fault = f"has the id {own!r} of line {line}; give it its own, or set data.id_column to null"
                    row = row._replace(fault=fault)
            yield row

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells, and answers that do not stand where they should."""
        fault = text_fault(values, (self.names.question, self.names.context))
        return answers_fault(values, self.names) if labelled and fault is None else fault

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The question and the context."""
        return values[self.names.question], values[self.names.context]

    def group(self, values: Mapping[str, Any]) -> Any:
        """The context: its other questions would give away much of it."""
        return values[self.names.context]

    # What is kept of it

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """Question, context, answers, the windows, the tokens of the context, and which of them the answers are."""
        texts = {"text": pa.string(), "text_pair": pa.string(), "answers": pa.list_(pa.string())}
        numbers = ("windows", "word_token", "word_start", "word_end", "answer_start", "answer_end")
        return texts | dict.fromkeys(numbers, pa.list_(pa.int32()))

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The texts; `encode` gives the rest."""
        question, context = self.texts(values)
        answers = [answer.text for answer in answers_of(values, self.names)] if labelled else None
        return {"text": question, "text_pair": context, "answers": answers}

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize questions with their contexts, and make windows where both together are too long.

        The "words" of a row are the tokens of its context that show something; `answer_start` and `answer_end` say
        which of them are the first and the last of each answer. Of the counts `windowed` is how many rows have several
        windows, and `inside` how many have an answer that begins or ends inside a token.
        """
        questions, contexts = zip(*map(self.texts, rows), strict=True)
        encoded = self.tokenizer(list(questions), list(contexts), return_attention_mask=False)
        types = encoded.get("token_type_ids") or [None] * len(rows)
        found = []
        counts = {"windowed": 0, "inside": 0}
        for values, encoding, kinds in zip(rows, encoded.encodings, types, strict=True):
            columns, words = self._windows(values[self.names.context], encoding, kinds)
            spans: dict[tuple[int, int], None] = {}  # each once, in order
            inside = False
            for answer in answers_of(values, self.names) if labelled else []:
                if span := token_span(answer, words):
                    spans[span] = None
                    inside |= (words[span[0]][0], words[span[1]][1]) != characters(answer)
                else:
                    fault = f"the answer {answer.text!r} has no token of this tokenizer; fix the row"
                    columns |= {"input_ids": [], "fault": fault}
            columns |= {"answer_start": [start for start, _ in spans], "answer_end": [end for _, end in spans]}
            found.append(columns)
            counts["windowed"] += columns["windows"] is not None
            counts["inside"] += inside
        return {name: [row[name] for row in found] for name in found[0]}, counts

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """In windows, as `encode` makes them."""
        question, context = self.texts(values)
        (encoding,) = self.tokenizer([question], [context], return_attention_mask=False).encodings
        placed = SimpleNamespace(  # places are cut as tokens are
            ids=places_of(encoding), sequence_ids=encoding.sequence_ids, offsets=encoding.offsets
        )
        texts = {self.names.question: question, self.names.context: context or ""}
        return Origins(texts, self._windows(context or "", placed, None)[0]["input_ids"])

    def _windows(
        self, context: str, encoding: Any, types: list[int] | None
    ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """The columns of one row but for its answers, and the characters of the tokens of its context."""
        ids, sequence = encoding.ids, encoding.sequence_ids
        count = sequence.count(1)
        first = sequence.index(1) if count else len(ids)
        shown, words = shown_tokens(context, encoding.offsets[first : first + count])
        around = len(ids) - count
        lengths, places, fault = None, [first + i for i in shown], None
        if len(ids) > self.max_length and self.max_length - around <= self.stride:
            fault = (
                f"the question takes {around} of data.max_length {self.max_length} tokens, too many for windows of "
                f"the context that share data.stride {self.stride}; set a larger max_length"
            )
            ids = []
        elif len(ids) > self.max_length:
            ids, lengths, places = windowed(ids, first, count, self.max_length, self.stride, shown)
            if types is not None:
                before, kind, behind = types[:first], types[first], types[first + count :]
                types = [t for n in lengths for t in (*before, *[kind] * (n - around), *behind)]
        starts, ends = [start for start, _ in words], [end for _, end in words]
        columns = {"input_ids": ids, "token_type_ids": types, "windows": lengths, "fault": fault}
        return columns | {"word_token": places, "word_start": starts, "word_end": ends}, words

    def labels_of(self, stored: Mapping[str, Any]) -> list[str]:
        """Whether the row has an answer."""
        return [] if stored["answers"] is None else [_ANSWERED if stored["answers"] else _UNANSWERED]

    def notes(self, source: str, facts: Mapping[str, Any]) -> list[str]:
        """How many questions have no answer, and what was made of long rows and of tokens that hold more."""
        found = []
        if _UNANSWERED in facts["labels"]:
            count, rows = facts["labels"][_UNANSWERED][0], facts["rows"]
            found.append(f"questions of {source} without an answer in their context: {count:,} of {rows:,}")
        if facts["windowed"]:
            found.append(
                f"rows of {source} longer than {self.max_length} tokens: {facts['windowed']:,}; nothing is cut, their "
                f"contexts are read in windows that share {self.stride} tokens"
            )
        if facts["inside"]:
            found.append(
                f"rows of {source} with an answer that begins or ends inside a token: {facts['inside']:,}; "
                f"the whole token is learnt, and measured against the answer as it is"
            )
        return found

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The columns that prediction needs, and what was predicted."""
        start = prediction.start  # type: ignore[attr-defined]
        texts, starts = ([], []) if start is None else ([prediction.answer], [start])  # type: ignore[attr-defined]
        return self.asked_of(values) | {self.names.answers: {"text": texts, "answer_start": starts}}

    # Labels

    @cached_property
    def label_space(self) -> LabelSpace:
        """The two borders of an answer."""
        return LabelSpace(("start", "end"))

    def check(self, name: str, facts: dict[str, Any]) -> None:
        """There must be answers to learn from."""
        if name == self.sources.get("train") and _ANSWERED not in facts["labels"]:
            raise UserError(f"{name} has no question with an answer; name a file that has some")

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """`answer_row`: (A,) the row of each answer; `answer_start`, `answer_end`: which words are its borders."""
        counts = [len(starts) for starts in columns["answer_start"]]
        rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        joined = {name: [p for row in columns[name] for p in row] for name in ("answer_start", "answer_end")}
        return {"answer_row": rows} | {name: torch.tensor(p, dtype=torch.long) for name, p in joined.items()}

    def metric_texts(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """`context`, `answers` and `language`."""
        language = [self.language] * len(columns["answers"])
        return {"context": columns["text_pair"], "answers": columns["answers"], "language": language}

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """The answers in characters of the context."""
        context = texts[1] or ""
        alternatives = [replace(span, answer=context[span.start : span.end]) for span in prediction.alternatives]  # type: ignore[attr-defined]
        answer = "" if prediction.start is None else context[prediction.start : prediction.end]  # type: ignore[attr-defined]
        return replace(prediction, answer=answer, alternatives=alternatives)  # type: ignore[call-arg]

    def record(self) -> dict[str, Any]:
        """Columns and limits that reading new rows needs."""
        return super().record() | {
            "question_column": self.names.question,
            "context_column": self.names.context,
            "answers_column": self.names.answers,
            "answer_column": self.names.answer,
            "answer_start_column": self.names.answer_start,
            "id_column": self.names.id,
            "stride": self.stride,
        }
