"""Questions with a choice of answers, any number of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from llm_arch.data.cells import text_fault
from llm_arch.data.choices import choices_of, place_of
from llm_arch.data.module import DataModule
from llm_arch.data.origins import NOWHERE, Origins, Place, places_of
from llm_arch.types import LabelSpace, Prediction, UserError


class MultipleChoiceData(DataModule):
    """Rows with a question, two or more choices, and which of them is the answer.

    The choices stand in one column, or in a column each (`choice_columns`), where an empty cell is no choice. In one
    column they are a list of texts, a list of {"label", "text"}, or {"label": [...], "text": [...]}. The answer is the
    label of a choice (its column where each has one), else its text, else its number, from 0.

    Each choice is a sequence of its own, behind the question: "question [SEP] choice". With a context it is "context
    [SEP] question choice". Of what is longer than `max_length` the end of the longer part is cut. The choices of a
    question are always in one batch, and of rows with the same question none is cut off for another split.

    Args:
        train: see `DataModule`, as for all arguments up to `cache_dir`.
        validation: see `DataModule`.
        test: see `DataModule`.
        question_column: column of the question; `question.stem` reaches into a column that holds mappings.
        choices_column: column of the choices.
        choice_columns: columns of the choices where each has its own, instead of `choices_column`.
        answer_column: column of the answer.
        context_column: column of a text that the question is about, or None.
        **options: the options of `DataModule`.
    """

    column_options = "--data.question_column, --data.choices_column, --data.answer_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        question_column: str = "question",
        choices_column: str = "choices",
        choice_columns: list[str] | None = None,
        answer_column: str = "answer",
        context_column: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        if choice_columns is not None and len(set(choice_columns)) < max(2, len(choice_columns)):
            raise UserError(f"data.choice_columns must name two or more different columns, got {choice_columns}")
        self.question_column = question_column
        self.choices_column = choices_column
        self.choice_columns = choice_columns
        self.answer_column = answer_column
        self.context_column = context_column

    # What a row is

    @property
    def columns(self) -> dict[str, bool]:
        """Question and choices always, the answer where there is something to learn or measure."""
        context = {self.context_column: True} if self.context_column else {}
        choices = dict.fromkeys(self.choice_columns or [self.choices_column], True)
        return {**context, self.question_column: True, **choices, self.answer_column: False}

    def columns_of(self, values: Mapping[str, Any]) -> dict[str, bool]:
        """A choice with a column of its own may be none."""
        empty = {name for name in self.choice_columns or () if values.get(name, "") is None}
        return {name: always for name, always in self.columns.items() if name not in empty}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells, choices that are none, and an answer that is none of them."""
        if fault := text_fault(values, (self.context_column, self.question_column)):
            return fault
        try:
            choices = self._choices(values)
            if labelled:
                place = place_of(values[self.answer_column], choices, self.answer_column)
                self._check_number(values, choices[place])
        except UserError as error:
            return str(error)
        return None

    def _choices(self, values: Mapping[str, Any]) -> list[tuple[str | None, str]]:
        """The choices of a row, each with its label or None."""
        if self.choice_columns is None:
            return choices_of(values[self.choices_column], self.choices_column)
        cells = {name: values.get(name) for name in self.choice_columns}
        used = {name: cell for name, cell in cells.items() if not (cell is None or str(cell).strip() == "")}
        return choices_of({"label": list(used), "text": list(used.values())}, ", ".join(self.choice_columns))

    def _check_number(self, values: Mapping[str, Any], choice: tuple[str | None, str]) -> None:
        """Behind an empty cell a number could mean one choice by column and another by count."""
        answer = str(values[self.answer_column]).strip()
        if self.choice_columns is None or answer in choice or not answer.isdecimal():
            return
        if self.choice_columns.index(str(choice[0])) != int(answer):
            raise UserError(
                f"{self.answer_column!r} is the number {answer}, but a choice before it is empty; "
                f"name the column of the answer instead"
            )

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The question, and the choices as JSON: a list of label and text of each."""
        named = [(str(i) if label is None else label, text) for i, (label, text) in enumerate(self._choices(values))]
        return values[self.question_column], json.dumps(named, ensure_ascii=False)

    def group(self, values: Mapping[str, Any]) -> Any:
        """The question: rows that ask it again, with other choices, would give away its answer."""
        return self._question(values)

    def _question(self, values: Mapping[str, Any]) -> tuple[str, str]:
        context = values[self.context_column] if self.context_column else ""
        return context, values[self.question_column]

    # What is kept of it

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The texts, the tokens of each choice, and the number of the answer."""
        texts = {"text": pa.string(), "text_pair": pa.string()}
        return {**texts, "windows": pa.list_(pa.int32()), "answer": pa.int32()}

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The texts and the answer; `encode` gives the rest."""
        question, choices = self.texts(values)
        answer = values[self.answer_column] if labelled else None
        place = place_of(answer, self._choices(values), self.answer_column) if labelled else None
        return {"text": question, "text_pair": choices, "answer": place}

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize each choice with its question; the sequences of a row are its `windows`."""
        pairs, sizes = [], []
        for values in rows:
            own = self._pairs(values)
            pairs += own
            sizes.append(len(own))
        first, second = map(list, zip(*pairs, strict=True))
        encoded = self.tokenizer(
            first, second, truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        types = encoded.get("token_type_ids")
        columns: dict[str, list[Any]] = {"input_ids": [], "token_type_ids": [], "windows": []}
        truncated, start = 0, 0
        for size in sizes:
            choices = slice(start, start + size)
            ids = encoded["input_ids"][choices]
            columns["input_ids"].append(list(chain.from_iterable(ids)))
            columns["token_type_ids"].append(list(chain.from_iterable(types[choices])) if types else None)
            columns["windows"].append([len(one) for one in ids])
            truncated += any(e.overflowing for e in encoded.encodings[choices])
            start += size
        words = sum(len(a.split()) + len(b.split()) for a, b in pairs)
        return columns, {"truncated": truncated, "words": words}

    def _pairs(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The two texts of each choice's sequence."""
        context, question = self._question(values)
        texts = [text for _, text in self._choices(values)]
        return [(context, f"{question} {text}") if context else (question, self._gap + text) for text in texts]

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """The question and the context stand in the sequence of every choice, which is a text of its own."""
        context, question = self._question(values)
        choices = {
            f"choice {i if label is None else label}": text for i, (label, text) in enumerate(self._choices(values))
        }
        asked = {self.question_column: question} | ({self.context_column: context} if self.context_column else {})
        before = len(question) + 1 if context else len(self._gap)  # what stands before a choice in its own text
        backend = self.tokenizer.backend_tokenizer
        backend.enable_truncation(self.max_length, direction=self.tokenizer.truncation_side)
        backend.no_padding()

        def moved(place: Place, choice: int) -> Place:
            text, start, end = place
            if text == 1 and end > before:
                return len(asked) + choice, max(0, start - before), end - before
            if text == 1:  # the question, behind a context
                return (0, start, min(end, len(question))) if context else NOWHERE
            return (text, start, end) if text < 0 or not context else (1, start, end)

        places = [
            moved(place, choice)
            for choice, pair in enumerate(self._pairs(values))
            for place in places_of(backend.encode(*pair))
        ]
        return Origins({**asked, **choices}, places)

    @cached_property
    def _gap(self) -> str:
        """What keeps the last word of a question from the first of a choice, where no special token does."""
        special = self.tokenizer.num_special_tokens_to_add
        return "" if special(pair=True) > special(pair=False) else " "

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The columns that prediction needs, and what was predicted."""
        label = prediction.label  # type: ignore[attr-defined]
        numbered = self._choices(values)[0][0] is None  # a number that is written as text could be that of a choice
        return self.asked_of(values) | {self.answer_column: int(label) if numbered else label}

    # Answers

    @cached_property
    def label_space(self) -> LabelSpace:
        """Empty: what can be chosen is another thing in each row."""
        return LabelSpace(())

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """`choice`: (R,) the number of the answer among the choices of each row."""
        return {"choice": torch.tensor(columns["answer"])}

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """The choice by its label, with its text."""
        choices = json.loads(texts[1] or "[]")
        label, text = choices[int(prediction.label)]  # type: ignore[attr-defined]
        scores = dict(zip((label for label, _ in choices), prediction.scores.values(), strict=True))  # type: ignore[attr-defined]
        return replace(prediction, label=label, text=text, scores=scores)  # type: ignore[call-arg]

    def record(self) -> dict[str, Any]:
        """Columns and limits that reading new rows needs."""
        return super().record() | {
            "question_column": self.question_column,
            "choices_column": self.choices_column,
            "choice_columns": self.choice_columns,
            "answer_column": self.answer_column,
            "context_column": self.context_column,
        }
