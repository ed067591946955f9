"""The head that finds answers: logits, losses and spans against rows written out one by one; leaving unanswered."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_arch.data.collate import make_batch
from llm_arch.heads.answers import AnswerMetrics
from llm_arch.heads.question_answering import AnswerPrediction, AnswerSpan, QuestionAnswering
from llm_arch.types import Batch, Hidden, LabelSpace, UserError

D = 6
LABELS = LabelSpace(("start", "end"))
# Row 20 has two windows that share tokens, row 21 a context that shows nothing, row 25 is short.
ROWS: list[dict[str, Any]] = [
    {"index": 20, "tokens": 9, "windows": [5, 4], "words": [2, 3, 7], "spans": [(0, 4), (5, 7), (8, 12)]},
    {"index": 21, "tokens": 3, "windows": None, "words": [], "spans": []},
    {"index": 25, "tokens": 4, "windows": None, "words": [2, 3], "spans": [(1, 3), (4, 9)]},
]
TOKENS, STARTS = 16, ((0, 5), (9,), (12,))  # first tokens of each row's windows
ANSWERS = [(0, 1, 2), (0, 0, 0), (2, 1, 1)]  # row, first word, last word


def batch_of(
    rows: list[dict[str, Any]] = ROWS, answers: list[tuple[int, int, int]] | None = None, layout: str = "flat"
) -> Batch:
    columns = {
        "input_ids": [[1] * row["tokens"] for row in rows],
        "token_type_ids": [None] * len(rows),
        "windows": [row["windows"] for row in rows],
        "index": [row["index"] for row in rows],
        "word_token": [row["words"] for row in rows],
        "word_start": [[start for start, _ in row["spans"]] for row in rows],
        "word_end": [[end for _, end in row["spans"]] for row in rows],
    }
    names = ("answer_row", "answer_start", "answer_end")
    labels = (
        dict(zip(names, torch.tensor(answers, dtype=torch.long).view(-1, 3).T, strict=True))
        if answers is not None
        else {}
    )
    return make_batch(columns, layout, labels)


def words_only(lengths: list[int]) -> Batch:
    """Rows of words of two characters and a blank, a token each, behind one token."""
    rows = [
        {
            "index": 10 + i,
            "tokens": n + 1,
            "windows": None,
            "words": list(range(1, n + 1)),
            "spans": [(3 * j, 3 * j + 2) for j in range(n)],
        }
        for i, n in enumerate(lengths)
    ]
    return batch_of(rows)


def head_of(**options: Any) -> QuestionAnswering:
    head = QuestionAnswering(D, LABELS, **{"dropout": 0.0, **options})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return head


def states(seed: int = 0) -> Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(seed))


def by_hand(head: QuestionAnswering, hidden_TD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each row the (words, 2) logits and that of no answer: the least of its windows."""
    found, first = [], 0
    for row, starts in zip(ROWS, STARTS, strict=True):
        words = [head.classify(hidden_TD[first + place]) for place in row["words"]]
        null = torch.stack([head.null(hidden_TD[start])[0] for start in starts]).min()
        found.append((torch.stack(words) if words else torch.zeros(0, 2), null))
        first += row["tokens"]
    return found


def pairs(words_W2: Tensor, null: Tensor) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
    """Log-probabilities of all spans that don't end before they start, and of no answer."""
    start, end = (torch.cat([null[None], words_W2[:, i]]).log_softmax(0) for i in range(2))
    count = len(words_W2)
    return {(i, j): start[1 + i] + end[1 + j] for i in range(count) for j in range(i, count)}, start[0] + end[0]


# Logits and losses


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_logits_are_the_linear_layers_at_tokens_of_the_context_and_at_first_tokens(layout: str) -> None:
    head, batch, hidden_TD = head_of(), batch_of(layout=layout), states()
    if batch.valid is not None:
        hidden_TD = torch.full((len(batch.valid), D), 1e3)
        hidden_TD[batch.valid] = states()
    logits = head(Hidden(hidden_TD), batch)
    rows = by_hand(head, states())
    torch.testing.assert_close(logits[:5], torch.cat([words for words, _ in rows]))
    torch.testing.assert_close(logits[5:], torch.stack([null for _, null in rows])[:, None].expand(-1, 2))


@pytest.mark.parametrize("kind", ["first", "all"])
def test_the_loss_is_of_whole_rows(kind: Any) -> None:
    head, answers = head_of(answers=kind), [(0, 1, 2), (0, 0, 0), (2, 1, 1)]
    rows = [pairs(*logits) for logits in by_hand(head, states())]
    first, silence, last = -rows[0][0][1, 2], -rows[1][1], -rows[2][0][1, 1]
    if kind == "all":
        first = -(rows[0][0][1, 2].exp() + rows[0][0][0, 0].exp()).log()
    loss = head.loss(Hidden(states()), batch_of(answers=answers))
    torch.testing.assert_close(loss.sum, (first + silence + last) / 2)
    assert loss.denominator == 3
    loss.sum.backward()
    assert all(bool(p.grad is not None and p.grad.isfinite().all() and p.grad.any()) for p in head.parameters())


def test_a_batch_without_answers_or_without_words_has_a_loss() -> None:
    head = head_of()
    loss = head.loss(Hidden(states()), batch_of(answers=[]))
    torch.testing.assert_close(loss.sum, -torch.stack([pairs(*row)[1] for row in by_hand(head, states())]).sum() / 2)
    alone = batch_of(ROWS[1:2], [])
    assert float(head.loss(Hidden(states()[:3]), alone).sum.detach()) == 0  # nothing else is possible
    (found,) = head.decode(head(Hidden(states()[:3]), alone), alone)
    assert found == AnswerPrediction(21, "", None, None, pytest.approx(1), pytest.approx(1), [])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), split=st.integers(1, 2))
def test_rows_do_not_know_of_each_other(seed: int, split: int) -> None:
    head, hidden_TD, cut = head_of(), states(seed), sum(row["tokens"] for row in ROWS[:split])
    sides = (slice(0, split), slice(0, cut)), (slice(split, 3), slice(cut, TOKENS))
    total = torch.zeros(())
    decoded = []
    for rows, tokens in sides:
        begin = rows.start or 0
        answers = [(row - begin, start, end) for row, start, end in ANSWERS if begin <= row < rows.stop]
        batch = batch_of(ROWS[rows], answers)
        total = total + head.loss(Hidden(hidden_TD[tokens]), batch).sum
        decoded += head.decode(head(Hidden(hidden_TD[tokens]), batch), batch)
    together = batch_of(answers=ANSWERS)
    torch.testing.assert_close(head.loss(Hidden(hidden_TD), together).sum, total)
    for one, other in zip(decoded, head.decode(head(Hidden(hidden_TD), together), together), strict=True):
        assert isinstance(one, AnswerPrediction)
        assert isinstance(other, AnswerPrediction)
        assert (one.index, one.start, one.end) == (other.index, other.start, other.end)
        assert one.score == pytest.approx(other.score, rel=1e-4)


def test_half_precision_states_give_a_loss_in_fp32() -> None:
    batch, head = batch_of(answers=ANSWERS), head_of().bfloat16()
    assert head.loss(Hidden(states().bfloat16()), batch).sum.dtype == torch.float32
    head.decode(head(Hidden(states().bfloat16()), batch), batch)
    head = head_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(Hidden(states()), batch)
        head.decode(head(Hidden(states()), batch), batch)
    assert loss.sum.dtype == torch.float32
    loss.sum.backward()


def test_dropout_is_on_in_training_only() -> None:
    head, hidden = head_of(dropout=0.5), Hidden(states())
    assert not torch.equal(head(hidden, batch_of()), head(hidden, batch_of()))
    head.eval()
    assert torch.equal(head(hidden, batch_of()), head(hidden, batch_of()))


def test_which_state_says_that_there_is_no_answer() -> None:
    class Bound:
        def __init__(self, pooling: str, is_decoder: bool) -> None:
            self.pooling, self.is_decoder = pooling, is_decoder

    for given_, backbones, decoder, expected in (
        (None, "mean", False, "first"),
        (None, "last", True, "last"),
        (None, "last", False, "last"),
        (None, "max", False, "first"),
        (None, "max", True, "last"),  # causal convolutions: the first token has seen nothing
        ("mean", "last", True, "mean"),
    ):
        head = head_of(pooling=given_)
        head.bind(Bound(backbones, decoder))  # type: ignore[arg-type]
        assert head.pooling == expected
        nulls = head(Hidden(states()), batch_of())[5:, 0]
        pooled = head.null(batch_of().pool(states(), expected))[:, 0]  # type: ignore[arg-type]
        torch.testing.assert_close(nulls, torch.stack([pooled[:2].min(), pooled[2], pooled[3]]))


# Decoding


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    longest=st.integers(1, 5),
    alternatives=st.integers(0, 4),
    seed=st.integers(0, 2**31),
    threshold=st.sampled_from([-3.0, 0.0, 3.0, math.inf, -math.inf]),
)
def test_the_best_spans_are_those_of_all(
    lengths: list[int], longest: int, alternatives: int, seed: int, threshold: float
) -> None:
    head, batch = head_of(max_answer_length=longest, alternatives=alternatives), words_only(lengths)
    head.null_threshold.fill_(threshold)
    logits = torch.randn(sum(lengths) + len(lengths), 2, generator=torch.Generator().manual_seed(seed)) * 3
    logits[sum(lengths) :, 1] = logits[sum(lengths) :, 0]
    first = 0
    for i, (found, count) in enumerate(zip(head.decode(logits, batch), lengths, strict=True)):
        assert isinstance(found, AnswerPrediction)
        spans, silence = pairs(logits[first : first + count], logits[sum(lengths) + i, 0])
        first += count
        ranked = sorted(
            ((float(score), a, b) for (a, b), score in spans.items() if b - a < longest), key=lambda x: -x[0]
        )
        expected = [AnswerSpan("", 3 * a, 3 * b + 2, pytest.approx(math.exp(s), rel=1e-4)) for s, a, b in ranked]
        assert found.index == 10 + i
        assert found.null_score == pytest.approx(float(silence.exp()), rel=1e-4)
        if not ranked or float(silence) - ranked[0][0] > threshold:
            assert (found.start, found.end, found.score) == (None, None, found.null_score)
            assert found.alternatives == expected[:alternatives]
        else:
            best = AnswerSpan("", found.start or 0, found.end or 0, found.score)
            assert [best, *found.alternatives] == expected[: 1 + alternatives]


def test_a_prediction_as_json() -> None:
    logits = torch.tensor([[5.0, 0], [0, 5], [0, 0], [0, 0]])
    (found,) = head_of().decode(logits, words_only([3]))
    line = found.to_dict()
    assert list(line) == ["answer", "start", "end", "score", "null_score", "alternatives"]
    assert (line["answer"], line["start"], line["end"]) == ("", 0, 5)
    assert [list(one) for one in line["alternatives"]] == [["answer", "start", "end", "score"]] * 2


# Measuring, and the threshold


def measured(threshold: float = 0.0) -> tuple[QuestionAnswering, Tensor, Batch]:
    head = head_of()
    head.null_threshold.fill_(threshold)
    logits = torch.tensor([[5.0, 0], [0, 5], [0, 0], [9, 9], [4, 0], [0, 6], [1, 1], [0, 0], [3, 3]])
    texts = {
        "context": ["ab cd ef", "gh", "ij kl"],
        "answers": [["ab cd"], [], ["kl"]],
        "language": ["en"] * 3,
    }
    batch = words_only([3, 1, 2])
    return head, logits, Batch(**(vars(batch) | {"texts": texts}))


def test_what_the_metric_gets() -> None:
    head, logits, batch = measured(0.5)
    spans, difference, threshold, answers, languages = head.metric_inputs(logits, batch)
    assert spans == ["ab cd", "gh", "ij kl"]
    torch.testing.assert_close(difference, torch.tensor([2 - 10.0, 0 - 18.0, 6 - 10.0]))
    assert (threshold, answers, languages) == (0.5, [["ab cd"], [], ["kl"]], ["en"] * 3)


def test_the_threshold_is_tuned_on_what_was_counted_and_kept_with_the_weights() -> None:
    head, logits, batch = measured()
    logits[6:] += torch.tensor([[0.0], [9], [0]])  # no answer of the second row is as probable as its span
    metric = head.metrics()
    assert isinstance(metric, AnswerMetrics)
    metric.update(*head.metric_inputs(logits, batch))
    assert float(metric.compute()["f1"]) == pytest.approx((1 + 0 + 2 / 3) / 3)
    head.calibrate(metric)
    metric._computed = None
    assert -4 < float(head.null_threshold) < 0  # between the third row and the second
    assert metric.threshold == float(head.null_threshold)
    assert float(metric.compute()["f1"]) == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert [p.start for p in head.decode(logits, batch)] == [0, None, 0]  # type: ignore[attr-defined]
    other = head_of()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.null_threshold, head.null_threshold)


def test_rows_without_words_are_measured_as_unanswered() -> None:
    head = head_of()
    texts = {"context": ["ab cd", "\u200b"], "answers": [["ab"], []], "language": ["en"] * 2}
    batch = Batch(**(vars(words_only([2, 0])) | {"texts": texts}))
    logits = torch.tensor([[5.0, 5], [0, 0], [0, 0], [0, 0]])
    metric = head.metrics()
    assert isinstance(metric, AnswerMetrics)
    metric.update(*head.metric_inputs(logits, batch))
    head.calibrate(metric)
    assert math.isfinite(metric.threshold) or metric.threshold == math.inf
    assert float(metric.compute()["exact_match"]) == 1


# Wrong use


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "any"}, "answers must be first or all, got 'any'"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1, got 0"),
        ({"alternatives": -1}, "alternatives must not be negative, got -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        head_of(**options)


def test_data_without_contexts() -> None:
    batch = make_batch({"input_ids": [[1, 2]], "token_type_ids": [None], "index": [0]})
    with pytest.raises(UserError, match="^question answering needs the tokens of contexts, which the data module"):
        head_of()(Hidden(torch.zeros(2, D)), batch)


def test_long_contexts_take_no_loop() -> None:
    """Thousands of words a row are decoded at once, with the same spans as a search of all."""
    count = 4000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count + 1, 2, generator=generator)
    (found,) = head_of(max_answer_length=30, alternatives=0).decode(logits, words_only([count]))
    scores = logits[:count, 0][:, None] + logits[:count, 1][None]
    scores = scores.triu().masked_fill(torch.ones(count, count).tril(-1) > 0, -99).tril(29)
    scores = scores.masked_fill(torch.ones(count, count).triu(30) > 0, -99)
    start, end = divmod(int(scores.argmax()), count)
    assert isinstance(found, AnswerPrediction)
    assert (found.start, found.end) == (3 * start, 3 * end + 2)


def test_answers_drawn_at_random_are_learnt() -> None:
    """Each token says whether it begins or ends the answer; a row without such tokens has none."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    head, batch = QuestionAnswering(D, LABELS, dropout=0.0), words_only([8] * 30)
    hidden_TD = torch.randn(30 * 9, D, generator=generator) / 4
    answers = []
    for row in range(30):
        if row % 3 == 0:
            hidden_TD[9 * row, 2] += 1  # the first token knows
            continue
        start = draw.randrange(8)
        end = draw.randrange(start, 8)
        hidden_TD[9 * row + 1 + start, 0] += 1
        hidden_TD[9 * row + 1 + end, 1] += 1
        answers.append((row, start, end))
    labels = dict(zip(("answer_row", "answer_start", "answer_end"), torch.tensor(answers).T, strict=True))
    batch = Batch(**(vars(batch) | {"labels": labels}))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(Hidden(hidden_TD), batch).mean.backward()
        optimizer.step()
    found = head.decode(head(Hidden(hidden_TD), batch), batch)
    expected = {row: (3 * start, 3 * end + 2) for row, start, end in answers}
    right = [(p.start, p.end) == expected.get(row, (None, None)) for row, p in enumerate(found)]  # type: ignore[attr-defined]
    assert sum(right) >= 28
