"""Multiple choice without training: the answer that a causal language model finds likeliest behind the question.

Likelihoods of long answers are small, so that they are compared per token (Brown et al. 2020) or per byte; or over what
the answer has without the question, since some texts are likely anywhere (PMI; Holtzman et al. 2021).

Legend: R rows, C choices of a row, I sequences (a prompt with a choice behind it), T tokens of a batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from llm_arch.data.batching import Cut, evaluation_plan
from llm_arch.data.collate import flat_batch
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.reading import missing
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.multiple_choice import ChoicePrediction
from llm_arch.inference.directory import Model, load
from llm_arch.precision import use_fast_fp32
from llm_arch.types import UserError

Normalise = Literal["tokens", "bytes", "none", "pmi"]

TEMPLATE = "Question: {question}\nAnswer:"
CONTEXT_TEMPLATE = "{context}\n" + TEMPLATE
_CHUNK = 256  # rows at a time
_Z = 1.959963984540054  # of a normal distribution, 95 % lie within as many standard deviations


@dataclass(frozen=True)
class Answered:
    """What the model chose for a row.

    Attributes:
        prediction: the choice; its scores are a softmax of the normalised log-likelihoods.
        right: whether it is the answer, or None where the row has none.
    """

    prediction: ChoicePrediction
    right: bool | None


@dataclass(frozen=True)
class Accuracy:
    """How many rows are right.

    Attributes:
        rows: rows with an answer.
        accuracy: share of them that is right; NaN without rows.
        low: lower end of its 95 % interval (Wilson 1927).
        high: upper end.
        chance: the accuracy of guessing.
    """

    rows: int
    accuracy: float
    low: float
    high: float
    chance: float

    @classmethod
    def of(cls, found: Iterable[Answered]) -> Accuracy:
        """Counted over the rows with an answer."""
        counted = [one for one in found if one.right is not None]
        rows = len(counted)
        if not rows:
            return cls(0, math.nan, math.nan, math.nan, math.nan)
        share = sum(bool(one.right) for one in counted) / rows
        spread = _Z * math.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2)) / (1 + _Z**2 / rows)
        middle = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
        chance = sum(1 / len(one.prediction.scores) for one in counted) / rows
        return cls(rows, share, max(0.0, middle - spread), min(1.0, middle + spread), chance)


class _Sequence(NamedTuple):
    ids: list[int]
    scored: int  # how many of them, at the end, belong to the choice


class ZeroShotChoice:
    """Answers questions with a choice of answers by a language model that was never trained to.

    Each choice is put behind the prompt, after a space unless the prompt ends with one, and scored by its own tokens
    alone. A token that belongs to both, which hardly any tokenizer makes, counts as the choice's.

    Args:
        model: a model directory of a causal language model, or a loaded `Model`.
        data: how rows are read, which columns hold what; None for question, choices and answer. It needs no tokenizer.
        template: the prompt, with {question}, and {context} where rows have one; None for "Question: {question}", a new
            line and "Answer:", behind the context and a new line where there is one.
        normalise: what a choice's log-likelihood is divided by: its number of `tokens`, its `bytes` in UTF-8, or
            nothing (`none`); or `pmi`: its log-likelihood behind what the template has after the last placeholder
            alone is subtracted.
        max_length: longest sequence in tokens; None for the one that the model was trained with. Of longer ones the
            beginning is cut, never the choice, and they are counted in `truncated`.
        device: where to run; None for a GPU if there is one.
        batch_tokens: tokens a batch at most.
        trust: modules outside this package that the model may use.

    Raises:
        UserError: the model is no causal language model, or the template does not suit the rows.
    """

    def __init__(
        self,
        model: str | Path | Model,
        data: MultipleChoiceData | None = None,
        *,
        template: str | None = None,
        normalise: Normalise = "tokens",
        max_length: int | None = None,
        device: str | None = None,
        batch_tokens: int = 8192,
        trust: tuple[str, ...] = (),
    ) -> None:
        if batch_tokens < 1:
            raise UserError(f"batch_tokens must be at least 1, got {batch_tokens}")
        if normalise not in get_args(Normalise):
            raise UserError(f"normalise must be one of {', '.join(get_args(Normalise))}, got {normalise!r}")
        self.data = data or MultipleChoiceData()
        self.normalise = normalise
        with_context = self.data.context_column is not None
        self.template = template or (CONTEXT_TEMPLATE if with_context else TEMPLATE)
        self._end = _checked(self.template, with_context)
        self.model = model if isinstance(model, Model) else load(model, trust=trust)
        _check_model(self.model)
        tokenizer, most = self.model.data.tokenizer, self.model.backbone.max_length or math.inf
        self.max_length = int(min(self.model.data.max_length, most)) if max_length is None else max_length
        if not 2 <= self.max_length <= most:
            raise UserError(f"max_length must be in 2 … {most}, got {max_length}")
        first = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        starts = getattr(self.model.data, "document_start", "bos") != "none"
        self._first = [first] if starts and first is not None else []
        if normalise == "pmi" and not (self._end or self._first):
            raise UserError(
                "normalise: pmi needs something in front of a choice without its question: let the template end with "
                "a few words, as in 'Answer:'"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cpu":
            use_fast_fp32()
        self.model.backbone.to(self.device)
        self.model.head.to(self.device)
        self.batch_tokens = batch_tokens
        self.truncated = 0

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> list[Answered]:
        """The choice of each row.

        Args:
            rows: mappings with the columns that `data` names; of the answer each may have one or not.

        Raises:
            UserError: for a row that can't be used, naming its number.
        """
        return list(self.stream(rows))

    def stream(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Answered]:
        """As a call, one after another in input order; memory does not grow with the number of rows."""
        rows, start = iter(rows), 0
        while chunk := list(islice(rows, _CHUNK)):
            yield from self._chunk(chunk, start)
            start += len(chunk)

    def _chunk(self, rows: list[Mapping[str, Any]], start: int) -> list[Answered]:
        for number, row in enumerate(rows, start=start + 1):
            if fault := row_fault(self.data, row):
                raise UserError(f"row {number}: {fault}")
        kept = [self.data.kept(row, labelled=has_answer(self.data, row)) for row in rows]
        choices_R = [[text for _, text in _named(one["text_pair"])] for one in kept]
        prompts_R = [self._prompt(row) for row in rows]
        texts = [text for choices in choices_R for text in choices]
        pairs = [(prompt, text) for prompt, choices in zip(prompts_R, choices_R, strict=True) for text in choices]
        costs_I, tokens_I = self._costs(pairs)
        scores_I = -costs_I
        if self.normalise == "tokens":
            scores_I /= tokens_I
        elif self.normalise == "bytes":
            scores_I /= [len(text.encode()) for text in texts]
        elif self.normalise == "pmi":
            alone = list(dict.fromkeys(texts))
            without = dict(zip(alone, self._costs([(self._end, text) for text in alone])[0].tolist(), strict=True))
            scores_I += [without[text] for text in texts]
        found, place = [], 0
        for index, (one, choices) in enumerate(zip(kept, choices_R, strict=True), start=start):
            scores_C = scores_I[place : place + len(choices)]
            place += len(choices)
            found.append(self._answered(index, one, scores_C))
        return found

    def _answered(self, index: int, kept: Mapping[str, Any], scores_C: NDArray[np.float64]) -> Answered:
        best = int(scores_C.argmax())
        chances_C = np.exp(scores_C - scores_C.max())
        chances = (chances_C / chances_C.sum()).tolist()
        named = {str(i): chance for i, chance in enumerate(chances)}
        prediction = ChoicePrediction(index, str(best), "", chances[best], named)
        completed = self.data.complete(prediction, (kept["text"], kept["text_pair"]))
        assert isinstance(completed, ChoicePrediction)
        return Answered(completed, None if kept["answer"] is None else kept["answer"] == best)

    def _prompt(self, row: Mapping[str, Any]) -> str:
        context = {} if self.data.context_column is None else {"context": row[self.data.context_column]}
        return self.template.format(question=row[self.data.question_column], **context)

    def _costs(self, pairs: Sequence[tuple[str, str]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(I,) negative log-likelihoods of choices behind prompts, and (I,) their tokens."""
        sequences = self._sequences(pairs)
        scored_I = np.array([sequence.scored for sequence in sequences])
        cells_I = np.array([len(sequence.ids) - 1 for sequence in sequences])
        costs_I = np.zeros(len(sequences))
        for chosen in evaluation_plan(Cut(cells_I, None, self.batch_tokens), 1):
            scored, cells = scored_I[chosen], cells_I[chosen]
            # The tokens of a choice are told by the cells from the one before them on, the last of each sequence.
            back = np.repeat(np.cumsum(scored), scored) - np.arange(scored.sum())
            labels = {
                "positions": np.repeat(np.cumsum(cells), scored) - back,
                "targets": np.concatenate([sequences[i].ids[-sequences[i].scored :] for i in chosen]),
            }
            ids_T = np.concatenate([sequences[i].ids[:-1] for i in chosen])
            batch = flat_batch(ids_T, None, cells, chosen, labels=labels).to(self.device)
            with torch.inference_mode():
                found = self.model.head.token_scores(self.model.backbone(batch), batch)[0]  # type: ignore[operator]
            np.add.at(costs_I, np.repeat(chosen, scored), found.double().cpu().numpy())
        return costs_I, scored_I

    def _sequences(self, pairs: Sequence[tuple[str, str]]) -> list[_Sequence]:
        fronts = [prompt + " " * bool(prompt and not prompt[-1].isspace()) for prompt, _ in pairs]
        whole = [front + choice for front, (_, choice) in zip(fronts, pairs, strict=True)]
        encoded = self.model.data.tokenizer(whole, add_special_tokens=False, return_attention_mask=False)
        found = []
        for encoding, (prompt, choice) in zip(encoded.encodings, pairs, strict=True):
            before = sum(end <= len(prompt) for _, end in encoding.offsets)
            ids, scored = [*self._first, *encoding.ids], len(encoding.ids) - before
            if not scored or len(ids) == scored:
                which = f"the prompt {prompt!r}" if scored else f"the choice {choice!r}"
                raise UserError(f"{which} gives no tokens with the tokenizer of {self.model.directory}; change it")
            if scored >= self.max_length:
                raise UserError(
                    f"the choice {choice[:40]!r} … has {scored} tokens, which leaves nothing of the {self.max_length} "
                    "(max_length) for its question; shorten it"
                )
            # The last token is only predicted.
            room = self.max_length + 1
            if len(ids) > room:
                self.truncated += 1
                ids = [*self._first, *ids[len(ids) - room + len(self._first) :]]
            found.append(_Sequence(ids, scored))
        return found


def row_fault(data: MultipleChoiceData, row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, as the end of a sentence, or None; of the answer only where it has one."""
    absent = missing([name for name, always in data.columns_of(row).items() if always], row)
    if absent:
        has = ", ".join(map(str, row))
        return f"{absent}; it has: {has}. Name yours with question_column (--question-column) and the like"
    return data.fault(row, has_answer(data, row))


def has_answer(data: MultipleChoiceData, row: Mapping[str, Any]) -> bool:
    """Whether a row says which choice is right."""
    answer = row.get(data.answer_column)
    return answer is not None and str(answer).strip() != ""


def _named(choices: str) -> list[tuple[str, str]]:
    return [(label, text) for label, text in json.loads(choices)]


def _checked(template: str, with_context: bool) -> str:
    """What the template has behind its last placeholder, stripped.

    Raises:
        UserError: it has other placeholders than those that rows fill.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"the template {template!r} can't be read ({error}); write a brace as {{{{ or }}}}") from error
    fields = {name for _, name, _, _ in parts if name is not None}
    if unknown := fields - {"question", "context"}:
        raise UserError(
            f"the template {template!r} has the placeholder {{{min(unknown)}}}; rows fill {{question}} and {{context}}"
        )
    if "question" not in fields:
        raise UserError(f"the template {template!r} lacks {{question}}; put it where the question shall stand")
    if ("context" in fields) != with_context:
        what = "lacks {context}, and there is" if with_context else "has {context}, and there is not"
        raise UserError(f"the template {template!r} {what} a context_column; give both or neither")
    literal, field, _, _ = parts[-1]
    return literal.strip() if field is None else ""


def _check_model(model: Model) -> None:
    if isinstance(model.head, LanguageModel) and not model.backbone.encoder_decoder:
        return
    raise UserError(
        f"{model.directory} holds a {type(model.head).__name__} on a {type(model.backbone).__name__}, which gives no "
        "text a likelihood from left to right; take a decoder (GPT-2, Llama, RecurrentEncoder with bidirectional: "
        "false, ConvolutionalEncoder with causal: true) with a LanguageModel head, or train an encoder with "
        "-c task/multiple_choice"
    )
