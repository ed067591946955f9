"""Extractive question answering: from where to where in its context the answer to a question stands, if it does.

Legend: T tokens, B sequences (windows), R rows, W words (tokens of contexts), L longest context, A answers,
D hidden size, M most tokens of an answer, K best spans.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchmetrics import Metric

from llm_arch.heads.answers import AnswerMetrics
from llm_arch.types import (
    Backbone,
    Batch,
    Head,
    Hidden,
    LabelSpace,
    Loss,
    Pooling,
    Prediction,
    Reading,
    Target,
    Taught,
    UserError,
    Words,
)

_NEVER = float("-inf")
_NO_ANSWER = "no answer"


@dataclass(frozen=True)
class AnswerSpan:
    """Some characters of a context.

    Attributes:
        answer: the characters, where the context is known.
        start: the first.
        end: the one after the last.
        score: probability, in [0, 1].
    """

    answer: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class AnswerPrediction(Prediction):
    """The answer to a question.

    Attributes:
        answer: characters of the context, where it is known; empty when the question is left unanswered.
        start: the first of them, or None when unanswered.
        end: the one after the last, or None when unanswered.
        score: probability of this answer, or of none when unanswered, in [0, 1].
        null_score: probability that the context holds no answer.
        alternatives: the next best spans, best first; they begin with the best of all when unanswered.
    """

    answer: str
    start: int | None
    end: int | None
    score: float
    null_score: float
    alternatives: list[AnswerSpan]


class Best(NamedTuple):
    """The best spans of each row.

    Attributes:
        score: (R, K) log-probabilities, best first; -inf where a row has no more spans.
        start: (R, K) first characters, and (R, K) the characters after the last; 0 where there is no span.
        end: see `start`.
        null: (R,) log-probability of no answer.
    """

    score: Tensor
    start: Tensor
    end: Tensor
    null: Tensor

    @property
    def difference(self) -> Tensor:
        """(R,) log-probability of no answer less that of the best span; inf where there is no span."""
        return self.null - self.score[:, 0]


class QuestionAnswering(Head):
    """Scores for each token of the context as the first and as the last of the answer, and one for no answer.

    Start and end each have a softmax over the whole context and "no answer", whatever the number of windows (Devlin et
    al. 2019 do so window by window). A row's score for no answer is the least of its windows', as the answer may
    stand in another one. A span's probability is that of its start times that of its end.

    A question is left unanswered when no answer is more probable than the best span by more than `null_threshold` in
    log-probability. That is tuned for the highest F1 at the end of each validation, which measures with the new value,
    and kept with the weights; what is tested or predicted later uses it. Without validation rows it stays 0.

    Args:
        hidden_size: D.
        label_space: start and end.
        pooling: which state of a window tells that it holds no answer: the first token's, or another pooling. None for
            the first token, and the last with backbones that read from left to right.
        answers: where several are right, learn the `first`, or maximise the probability of `all` together.
        max_answer_length: most tokens of a predicted answer.
        alternatives: how many spans to list beside the best.
        dropout: probability on the states.
    """

    major = "f1"
    mode = "max"

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        pooling: Pooling | None = None,
        answers: Literal["first", "all"] = "first",
        max_answer_length: int = 30,
        alternatives: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if answers not in ("first", "all"):
            raise UserError(f"answers must be first or all, got {answers!r}")
        if max_answer_length < 1:
            raise UserError(f"max_answer_length must be at least 1, got {max_answer_length}")
        if alternatives < 0:
            raise UserError(f"alternatives must not be negative, got {alternatives}")
        self.label_space = label_space
        self.pooling = pooling
        self.answers = answers
        self.max_answer_length = max_answer_length
        self.alternatives = alternatives
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden_size, 2)
        self.null = nn.Linear(hidden_size, 1)
        for linear in (self.classify, self.null):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.null_threshold: Tensor
        self.register_buffer("null_threshold", torch.zeros(()))

    def bind(self, backbone: Backbone) -> None:
        """Take the last token where the first has seen nothing, unless told otherwise."""
        reads_forward = backbone.pooling == "last" or getattr(backbone, "is_decoder", False)
        self.pooling = self.pooling or ("last" if reads_forward else "first")

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(W + R, 2) logits of start and end: of the words, then of no answer for each row."""
        words_W2 = self.classify(self.dropout(hidden.last_TD[_words(batch).token]))
        null_B = self.null(self.dropout(batch.pool(hidden.last_TD, self.pooling or "first")))[:, 0]
        null_R = null_B.new_full((batch.rows,), float("inf"))
        null_R = null_R.scatter_reduce(0, batch.row_of_sequence, null_B, "amin")
        return torch.cat([words_W2, null_R[:, None].expand(-1, 2)])

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Mean of the negative log-probabilities of the right start and end, summed over rows, over their number."""
        log_R2L = _log_probabilities(self(hidden, batch), batch)
        row_A, start_A, end_A = (batch.labels[name] for name in ("answer_row", "answer_start", "answer_end"))
        counts_R = torch.bincount(row_A, minlength=batch.rows)
        place_A = _places(row_A, counts_R)
        if self.answers == "first":
            first_A = place_A == 0
            row_A, start_A, end_A, place_A = row_A[first_A], start_A[first_A], end_A[first_A], place_A[first_A]
        # A column for no answer, and one for each of a row's answers.
        right = log_R2L.new_full((batch.rows, 1 + int(counts_R.max())), _NEVER)
        right[:, 0] = log_R2L[:, :, 0].sum(1).masked_fill(counts_R > 0, _NEVER)
        right = right.index_put((row_A, 1 + place_A), log_R2L[row_A, 0, 1 + start_A] + log_R2L[row_A, 1, 1 + end_A])
        return Loss(-right.logsumexp(1).sum() / 2, float(batch.rows))

    def logit_rows(self, batch: Batch) -> Tensor:
        """(W + R,): of the words, then of no answer for each row."""
        row_W = _words(batch).row
        return torch.cat([row_W, torch.arange(batch.rows, device=row_W.device)])

    def distil(self, hidden: Hidden, batch: Batch, taught: Taught, temperature: float) -> Loss:
        """Mean of the divergences of start and end, each over the context and no answer, summed over rows."""
        ours, theirs = (
            _log_probabilities(x.float() / temperature, batch) for x in (self(hidden, batch), taught.logits)
        )
        apart = (theirs - ours).masked_fill(theirs == _NEVER, 0.0)  # both are -inf where a row has no more words
        return Loss((theirs.exp() * apart).sum() / 2 * temperature**2, float(batch.rows))

    def metrics(self) -> Metric:
        """Exact match and F1."""
        return AnswerMetrics()

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Any, ...]:
        """The best span of each row, how much more probable no answer is, the threshold, and the right answers."""
        found = self.best(logits, batch, 1)
        places = zip(batch.texts["context"], found.start[:, 0].tolist(), found.end[:, 0].tolist(), strict=True)
        spans = [context[start:end] for context, start, end in places]
        threshold = float(self.null_threshold)
        return spans, found.difference, threshold, batch.texts["answers"], batch.texts["language"]

    def calibrate(self, metric: Metric) -> None:
        """Take the threshold with the best F1 on the validation rows."""
        assert isinstance(metric, AnswerMetrics)
        with metric.sync_context():
            self.null_threshold.fill_(metric.best_threshold())
        metric.threshold = float(self.null_threshold)

    def best(self, logits: Tensor, batch: Batch, count: int) -> Best:
        """The most probable spans of each row that end no sooner than they start and are not too long.

        Args:
            logits: (W + R, 2), see `forward`.
            batch: their batch.
            count: K, spans a row at most.
        """
        words, log_R2L = _words(batch), _log_probabilities(logits, batch)
        length = log_R2L.shape[2] - 1
        longest = min(self.max_answer_length, length)
        ends_RLM = pad(log_R2L[:, 1, 1:], (0, longest - 1), value=_NEVER).unfold(1, longest, 1)
        both_RLM = log_R2L[:, 0, 1:, None] + ends_RLM
        score_RK, place_RK = both_RLM.flatten(1).topk(min(count, length * longest))
        start_RK = place_RK // longest
        grids = _grid(torch.stack([words.start, words.end], 1), words.row, batch.rows, 0)
        span_2RK = (start_RK, start_RK + place_RK % longest)
        chars = (grids[:, i].gather(1, p.clamp(max=length - 1)) for i, p in enumerate(span_2RK))
        start, end = (c.masked_fill(score_RK == _NEVER, 0) for c in chars)
        return Best(score_RK, start, end, log_R2L[:, :, 0].sum(1))

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The answer of each row, or none, and the spans that come next."""
        found = self.best(logits, batch, 1 + self.alternatives)
        unanswered = (found.difference > self.null_threshold) | (found.score[:, 0] == _NEVER)
        table = torch.stack([found.start, found.end], 2).tolist()
        predictions: list[Prediction] = []
        for index, spans, scores, null, silent in zip(
            batch.row_index.tolist(),
            table,
            found.score.exp().tolist(),
            found.null.exp().tolist(),
            unanswered.tolist(),
            strict=True,
        ):
            both = zip(spans, scores, strict=True)
            listed = [AnswerSpan("", start, end, score) for (start, end), score in both if end]
            if silent:
                predictions.append(AnswerPrediction(index, "", None, None, null, null, listed[: self.alternatives]))
            else:
                best = listed[0]
                predictions.append(AnswerPrediction(index, "", best.start, best.end, best.score, null, listed[1:]))
        return predictions

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The logits of a span's start and end together, or those of no answer: what was answered unless told.

        `wanted` is the characters of a span of the context (`12-20`), an answer that stands in it once, or `no answer`.
        """
        context = [*reading.texts.values()][-1]
        if wanted is None:
            start, end = prediction.start, prediction.end  # type: ignore[attr-defined]
        else:
            start, end = (None, None) if wanted == _NO_ANSWER else _span_of(wanted, context)
        if start is None:
            place = len(reading.words)
            return Target(_NO_ANSWER, ((place, 0, 1.0), (place, 1, 1.0)), wanted=_NO_ANSWER)
        first, stop = reading.words_of(start, end, context)
        cells = ((first, 0, 1.0), (stop - 1, 1, 1.0))
        return Target(f"answer {context[start:end]!r}", cells, wanted=f"{start}-{end}")

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) that of start and end together, each from all places of its row."""
        log_R2L = _log_probabilities(logits, batch)
        nowhere_R = torch.bincount(_words(batch).row, minlength=batch.rows).tolist()  # the place of no answer

        def chance(row: int, sign: float) -> Tensor:
            own = [(place, side) for place, side, weight in targets[row].cells if weight * sign > 0]
            columns = [0 if place == nowhere_R[row] else 1 + place for place, _ in own]
            found = sum(
                (log_R2L[row, side, c] for c, (_, side) in zip(columns, own, strict=True)), log_R2L.new_zeros(())
            )
            return found.exp() if own else found

        return torch.stack([chance(row, 1.0) - chance(row, -1.0) for row in range(batch.rows)])


def _span_of(wanted: str, context: str) -> tuple[int, int]:
    """The characters that a user means."""
    if found := re.fullmatch(r"(\d+)-(\d+)", wanted):
        return int(found[1]), int(found[2])
    if not wanted or context.count(wanted) != 1:
        times = f"{context.count(wanted)} times" if wanted and wanted in context else "nowhere"
        raise UserError(
            f"the answer {wanted!r} stands {times} in the context; name its characters, such as 12-20, or no answer"
        )
    start = context.index(wanted)
    return start, start + len(wanted)


def _words(batch: Batch) -> Words:
    if batch.words is None:
        raise UserError(
            "question answering needs the tokens of contexts, which the data module doesn't give; "
            "take one that reads questions and contexts"
        )
    return batch.words


def _log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """(R, 2, 1 + L): of start and of end, first that there is none, then for each word; -inf beyond a row's words."""
    words = _words(batch)
    count = len(words.row)
    null_R2 = logits[count:].float()
    words_R2L = _grid(logits[:count].float(), words.row, batch.rows, _NEVER)
    return torch.cat([null_R2[:, :, None], words_R2L], 2).log_softmax(2)


def _grid(values_W2: Tensor, row_W: Tensor, rows: int, fill: float) -> Tensor:
    """(R, 2, L): the values of each row's words side by side; L is at least 1."""
    counts_R = torch.bincount(row_W, minlength=rows)
    grid = values_W2.new_full((rows, max(1, int(counts_R.max())), 2), fill)
    return grid.index_put((row_W, _places(row_W, counts_R)), values_W2).transpose(1, 2)


def _places(row_W: Tensor, counts_R: Tensor) -> Tensor:
    """(W,) the place of each within its row."""
    return torch.arange(len(row_W), device=row_W.device) - (counts_R.cumsum(0) - counts_R)[row_W]
