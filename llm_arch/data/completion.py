"""A text that is given and the text that is to follow: instructions, translations, summaries, answers, code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_arch.data.cells import text_fault
from llm_arch.data.written import Said, WrittenData
from llm_arch.types import Prediction, UserError

_PLACE = "{prompt}"


class CompletionData(WrittenData):
    """Rows with a prompt and its completion.

    Args:
        train: see `WrittenData`, as for all arguments up to `test`.
        validation: see `WrittenData`.
        test: see `WrittenData`.
        prompt_column: column of the text that is given; None where control codes are all that is.
        completion_column: column of the text that is to be written.
        control_columns: columns of control codes (CTRL; Keskar et al. 2019), such as a tone or a length: each goes in
            front of the prompt as `[column: value]`, so that it can be chosen in prediction.
        template: what is made of the prompt, with `{prompt}` where it goes, such as `Summarize: {prompt}`.
        **options: the options of `WrittenData`.
    """

    column_options = "--data.prompt_column, --data.completion_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        prompt_column: str | None = "prompt",
        completion_column: str = "completion",
        control_columns: list[str] | None = None,
        template: str = _PLACE,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        if _PLACE not in template:
            raise UserError(f"data.template must hold {_PLACE} where the prompt goes, got {template!r}")
        if prompt_column is None and not control_columns:
            raise UserError("without data.prompt_column there must be data.control_columns; name one of them")
        self.prompt_column = prompt_column
        self.completion_column = completion_column
        self.control_columns = control_columns or []
        self.template = template

    @property
    def columns(self) -> dict[str, bool]:
        """Prompt and control codes always, the completion where there is something to learn or measure."""
        prompt = {self.prompt_column: True} if self.prompt_column else {}
        return {**prompt, **dict.fromkeys(self.control_columns, True), self.completion_column: False}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells."""
        completion = self.completion_column if labelled else None
        if fault := text_fault(values, (self.prompt_column, completion)):
            return fault
        for column in self.control_columns:
            value = values[column]
            if isinstance(value, list | dict) or not str(value).strip():
                return f"{column!r} is to be a control code and holds {value!r}; fix the row"
        return None

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """Prompt with its codes, and completion if there is one."""
        codes = "".join(f"[{column}: {str(values[column]).strip()}] " for column in self.control_columns)
        completion = values.get(self.completion_column)
        prompt = self.template.replace(_PLACE, values[self.prompt_column]) if self.prompt_column else ""
        return (codes + prompt).rstrip() if self.strips else codes + prompt, completion if isinstance(
            completion, str
        ) else None

    def said(self, values: Mapping[str, Any], labelled: bool) -> list[Said]:
        """The prompt, given, and the completion, to be learnt."""
        prompt, completion = self.texts(values)
        return [Said(prompt, False), *([Said(completion or "", True)] if labelled else [])]

    def as_row(self, values: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        """The columns that prediction needs, and what was predicted."""
        return self.asked_of(values) | {self.completion_column: prediction.generated}  # type: ignore[attr-defined]

    def group(self, values: Mapping[str, Any]) -> Any:
        """The prompt: of rows with the same one, none is cut off for another split."""
        return values.get(self.prompt_column or self.completion_column)

    def example(self, split: str) -> str | None:
        """A short prompt of a split, or None, as where it is more than a text alone."""
        return None if self.control_columns or self.template != _PLACE else super().example(split)

    def record(self) -> dict[str, Any]:
        """Columns and limits that reading new rows needs."""
        return super().record() | {
            "prompt_column": self.prompt_column,
            "completion_column": self.completion_column,
            "control_columns": self.control_columns,
            "template": self.template,
        }
