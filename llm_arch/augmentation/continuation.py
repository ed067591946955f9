"""New texts for a label, written by a causal language model (LAMBADA; Anaby-Tavor et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_arch.augmentation.base import Method, Request, checked_least
from llm_arch.augmentation.rows import TextRow, Values
from llm_arch.augmentation.sampling import checked_sampling, sample
from llm_arch.inference.directory import Model
from llm_arch.inference.generator import Generator, Prompt
from llm_arch.types import UserError

_LABEL = "{label}"


class Continuation(Method):
    """The model goes on with a prompt that names the label; the first line of it is the text of the new row.

    It should have been fine-tuned on texts that begin so, each a line such as `complaint: the parcel is late`. A model
    that writes by control codes (`CompletionData`) is asked with the columns of the row that it was trained with
    instead. As it may miss the label all the same, keep only what a classifier agrees with (`filters.Agreement`).

    Args:
        model: a model directory trained with a LanguageModel head on a decoder, or a loaded `Model`.
        template: the prompt; `{label}` stands for the label in it, several labels of a row joined by commas.
        max_new_tokens: tokens of a text at most.
        temperature: of sampling, above 0; below 1 the likeliest tokens are preferred.
        top_k: sample among so many of the likeliest tokens; None for all.
        top_p: sample among the likeliest tokens that make up this probability; None for all.
        batch_size: texts written at a time.
        device: where to run; None for a GPU if there is one.
        trust: modules outside this package that the model may use.

    Raises:
        UserError: when the model can't go on with a text.
    """

    name = "continuation"
    keeps_marks = False

    def __init__(
        self,
        model: str | Path | Model,
        *,
        template: str = "{label}:",
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        batch_size: int = 16,
        device: str | None = None,
        trust: tuple[str, ...] = (),
    ) -> None:
        if _LABEL not in template:
            raise UserError(f"template must have {_LABEL} in it, where the label goes, got {template!r}")
        checked_least(max_new_tokens=max_new_tokens, batch_size=batch_size)
        checked_sampling(temperature, top_k, top_p)
        self.template, self.max_new_tokens, self.batch_size = template, max_new_tokens, batch_size
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = Generator(model, device=device, trust=trust)
        data = self.generator.model.data
        codes = bool(getattr(data, "control_columns", None))
        self._asked_by = [name for name, always in data.columns.items() if always] if codes else []

    def fault(self, row: TextRow) -> str | None:
        """Rows without a label, with two texts, or with something labelled in the text."""
        if fault := super().fault(row):
            return fault
        if len(row.passages) > 1:
            return f"has two texts, and the method {self.name!r} writes one; take another method"
        absent = next((name for name in self._asked_by if row.values.get(name) is None), None)
        if absent is not None:
            return f"has no {absent!r}, by which the model writes; add it, or take another method"
        if row.label or self._asked_by:
            return None
        return "has no label to write a text for; add one, or take another method"

    def _prompt(self, row: TextRow) -> Prompt:
        if self._asked_by:
            return {name: row.values[name] for name in self._asked_by}
        return self.template.replace(_LABEL, row.label or "")

    def __call__(self, requests: Sequence[Request]) -> list[Values | None]:
        """New rows; none where the model ends the text at once."""
        texts = sample(
            self.generator,
            [self._prompt(request.row) for request in requests],
            [request.key for request in requests],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            batch_size=self.batch_size,
        )
        lines = [text.strip().partition("\n")[0].strip() for text in texts]
        return [
            {**request.row.values, request.row.passages[0].column: line} if line else None
            for request, line in zip(requests, lines, strict=True)
        ]
