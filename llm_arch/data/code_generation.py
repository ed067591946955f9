"""Source code to go on with, or to fill in in the middle."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

from llm_arch.data.completion import CompletionData
from llm_arch.data.written import HOLE, Said
from llm_arch.types import Prediction, UserError

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"


class CodeGenerationData(CompletionData):
    """Rows with the beginning of some code and its rest, some of them made gaps to fill (FIM; Bavarian et al. 2022).

    A gap is one or more lines. What stands before and behind it is given, in this order: `<|fim_prefix|>` before
    `<|fim_suffix|>` behind `<|fim_middle|>`; these tokens are added to the tokenizer. Which rows are made gaps, and
    where, depends on their text alone. A row to predict is a gap where it has `suffix_column`.

    Args:
        train: see `CompletionData`, as for all arguments up to `test`.
        validation: see `CompletionData`.
        test: see `CompletionData`.
        prompt_column: column of the beginning.
        completion_column: column of the rest.
        suffix_column: column of what stands behind a gap, in rows to predict.
        fim_rate: share of the rows that are made gaps, in [0, 1].
        **options: the options of `CompletionData`.
    """

    added_tokens = (PREFIX, SUFFIX, MIDDLE)
    strips = False

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        prompt_column: str = "source",
        completion_column: str = "target",
        suffix_column: str = "suffix",
        fim_rate: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(
            train, validation, test, prompt_column=prompt_column, completion_column=completion_column, **options
        )
        if not 0 <= fim_rate <= 1:
            raise UserError(f"data.fim_rate must be in [0, 1], got {fim_rate}")
        self.suffix_column = suffix_column
        self.fim_rate = fim_rate

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells, and a suffix that is no text."""
        suffix = values.get(self.suffix_column)
        if not labelled and suffix is not None and not isinstance(suffix, str):
            return f"{self.suffix_column!r} holds {type(suffix).__name__} instead of text; fix the row"
        return super().fault(values, labelled)

    def said(self, values: Mapping[str, Any], labelled: bool) -> list[Said]:
        """What is given and what is to be learnt, in the order in which the model reads it."""
        before, middle, behind = self._gap(values, labelled)
        given = before if behind is None else f"{PREFIX}{before}{SUFFIX}{behind}{MIDDLE}"
        return [Said(given, False), *([Said(middle, True)] if labelled else [])]

    def _gap(self, values: Mapping[str, Any], labelled: bool) -> tuple[str, str, str | None]:
        """What stands before, what is to be written, and what stands behind, or None where nothing is known of it."""
        before, rest = self.texts(values)
        if not labelled:
            return before, "", values.get(self.suffix_column) or None
        code = before + (rest or "")
        choice = random.Random(hashlib.sha256(code.encode(errors="surrogatepass")).digest())
        lines = code.splitlines(keepends=True)
        if choice.random() >= self.fim_rate or len(lines) < 3:
            return before, rest or "", None
        first = choice.randrange(1, len(lines) - 1)
        last = choice.randrange(first + 1, len(lines))
        middle = "".join(lines[first:last])
        if not middle.strip():
            return before, rest or "", None
        return "".join(lines[:first]), middle, "".join(lines[last:])

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The texts, with a mark in what is given where the written text goes."""
        before, middle, behind = self._gap(values, labelled)
        return {"text": f"{before}{HOLE}{behind or ''}", "text_pair": middle if labelled else None}

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """What was written, and behind it what stands behind a gap."""
        row = super().as_row(values, prediction)
        return row | {self.completion_column: row[self.completion_column] + (values.get(self.suffix_column) or "")}

    @property
    def separator(self) -> list[int]:
        """None: code goes on where it stopped."""
        return []

    def record(self) -> dict[str, Any]:
        """Columns and shares that reading new rows needs."""
        return super().record() | {"suffix_column": self.suffix_column, "fim_rate": self.fim_rate}
