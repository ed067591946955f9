"""The head that chooses: a softmax over the sequences of each row, against torch's own on each row alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.multiple_choice import ChoiceAccuracy, ChoicePrediction, MultipleChoice, best, log_softmax
from llm_arch.types import Batch, Hidden, LabelSpace, UserError

D = 5
LENGTHS = [[3, 1], [2, 2, 4], [1, 3, 2, 2, 1]]  # tokens of each choice of three questions
TOKENS = sum(map(sum, LENGTHS))
ANSWERS = [1, 0, 3]


def batch_of(answers: list[int] | None = None, lengths: list[list[int]] = LENGTHS, layout: str = "flat") -> Batch:
    columns = {
        "input_ids": [[1] * sum(row) for row in lengths],
        "token_type_ids": [None] * len(lengths),
        "index": [20 + 3 * i for i in range(len(lengths))],
        "windows": lengths,
    }
    return make_batch(columns, layout, {} if answers is None else {"choice": torch.tensor(answers)})


def head_of(**options: Any) -> MultipleChoice:
    head = MultipleChoice(D, LabelSpace(()), **{"dropout": 0.0, "pooling": "mean", **options})
    with torch.no_grad():
        head.rate.weight.normal_()
        head.rate.bias.normal_()
    return head


def states(batch: Batch, seed: int = 0) -> Tensor:
    """Random states, the same for each real token in both layouts."""
    drawn = torch.randn(int(batch.lengths.sum()), D, generator=torch.Generator().manual_seed(seed))
    if batch.valid is None:
        return drawn
    spread = torch.full((len(batch.valid), D), 1e3)  # padding must not count, whatever it holds
    spread[batch.valid] = drawn
    return spread


def written_out(head: MultipleChoice, hidden_TD: Tensor, lengths: list[list[int]] = LENGTHS) -> list[Tensor]:
    """The logits of each row: the mean state of each choice through the linear layer."""
    parts = iter(hidden_TD.split([n for row in lengths for n in row]))
    return [
        torch.stack([next(parts).mean(0) @ head.rate.weight[0] + head.rate.bias[0] for _ in row]) for row in lengths
    ]


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_logit_for_each_choice(layout: str) -> None:
    head, batch = head_of(), batch_of(layout=layout)
    expected = torch.cat(written_out(head, states(batch_of())))
    torch.testing.assert_close(head(Hidden(states(batch)), batch), expected)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 7), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1.0, 300.0]),
    layout=st.sampled_from(["flat", "padded"]),
)
def test_loss_metric_and_decoding_are_those_of_each_row_alone(
    sizes: list[int], seed: int, scale: float, layout: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = [torch.randint(1, 5, (n,), generator=generator).tolist() for n in sizes]
    answers = [int(torch.randint(n, (1,), generator=generator)) for n in sizes]
    head, batch = head_of(), batch_of(answers, lengths, layout)
    hidden = states(batch, seed) * (scale if batch.valid is None else torch.where(batch.valid, scale, 1.0)[:, None])
    hidden.requires_grad_()
    rows = written_out(head, hidden if batch.valid is None else hidden[batch.valid], lengths)
    loss = head.loss(Hidden(hidden), batch)
    expected = sum(
        cross_entropy(row[None], torch.tensor([a]), reduction="sum") for row, a in zip(rows, answers, strict=True)
    )
    torch.testing.assert_close(loss.sum, expected, rtol=1e-4, atol=1e-4)
    assert loss.denominator == len(sizes)
    ours, theirs = (torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (loss.sum, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    logits = head(Hidden(hidden), batch).detach()
    found = head.decode(logits, batch)
    rows = [row.detach() for row in logits.split(sizes)]
    assert [p.index for p in found] == batch.row_index.tolist()
    for prediction, row in zip(found, rows, strict=True):
        assert isinstance(prediction, ChoicePrediction)
        torch.testing.assert_close(torch.tensor(list(prediction.scores.values())), row.softmax(0), rtol=1e-4, atol=1e-5)
        assert list(prediction.scores) == [str(i) for i in range(len(row))]
        assert prediction.label == str(int(row.argmax()))
        assert prediction.score == prediction.scores[prediction.label]
    metric = head.metrics()
    metric.update(*head.metric_inputs(logits, batch))
    right = [int(row.argmax()) == a for row, a in zip(rows, answers, strict=True)]
    assert float(metric.compute()["accuracy"]) == pytest.approx(sum(right) / len(right))


def test_in_closed_form() -> None:
    batch = batch_of([0, 1], [[1, 1], [1, 1, 1]])
    logits = torch.tensor([0.0, math.log(3), 1000.0, 1000.0, -1000.0])
    torch.testing.assert_close(log_softmax(logits, batch)[:2].exp(), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(log_softmax(logits, batch)[2:4].exp(), torch.tensor([0.5, 0.5]))
    assert best(logits, batch).tolist() == [1, 0]  # the first of equal ones


def test_what_is_added_to_all_choices_of_a_row_changes_nothing() -> None:
    batch = batch_of()
    logits = torch.randn(10)
    moved = logits + torch.tensor([5.0, -7.0, 100.0])[batch.row_of_sequence]
    torch.testing.assert_close(log_softmax(moved, batch), log_softmax(logits, batch), rtol=1e-4, atol=1e-4)


def test_the_loss_of_a_batch_is_that_of_its_parts() -> None:
    head = head_of()
    hidden = states(batch_of())
    cut = sum(map(sum, LENGTHS[:2]))
    whole = head.loss(Hidden(hidden), batch_of(ANSWERS))
    parts = [
        head.loss(Hidden(hidden[:cut]), batch_of(ANSWERS[:2], LENGTHS[:2])),
        head.loss(Hidden(hidden[cut:]), batch_of(ANSWERS[2:], LENGTHS[2:])),
    ]
    torch.testing.assert_close(parts[0].sum + parts[1].sum, whole.sum)
    assert float(parts[0].denominator) + float(parts[1].denominator) == float(whole.denominator)


def test_half_precision_states_give_a_loss_in_fp32() -> None:
    batch = batch_of(ANSWERS)
    assert head_of().bfloat16().loss(Hidden(states(batch).bfloat16()), batch).sum.dtype == torch.float32


def test_dropout_is_on_in_training_only() -> None:
    head, batch = head_of(dropout=0.5), batch_of()
    hidden = Hidden(states(batch))
    assert not torch.equal(head(hidden, batch), head(hidden, batch))
    head.eval()
    assert torch.equal(head(hidden, batch), head(hidden, batch))


def test_pooling_comes_from_the_backbone_unless_given() -> None:
    for backbone, pooling in ((Pretrained("tiny:bert"), "mean"), (Pretrained("tiny:gpt2"), "last")):
        free, told = MultipleChoice(32, LabelSpace(())), MultipleChoice(32, LabelSpace(()), pooling="max")
        free.bind(backbone)
        told.bind(backbone)
        assert (free.pooling, told.pooling) == (pooling, "max")


def test_data_of_another_kind() -> None:
    for labels in (LabelSpace(("a", "b")), LabelSpace((), moments=(0.0, 1.0))):
        with pytest.raises(UserError, match="^multiple choice needs rows with choices, the data has other labels"):
            MultipleChoice(D, labels)
    batch = batch_of()
    with pytest.raises(UserError, match="^multiple choice needs rows with choices, which the data module doesn't give"):
        head_of().loss(Hidden(states(batch)), batch)
    with pytest.raises(UserError, match="which the data module doesn't give"):
        head_of().metric_inputs(torch.zeros(10), batch)


def test_a_prediction_as_json() -> None:
    found = ChoicePrediction(3, "A", "house", 0.75, {"A": 0.75, "B": 0.25})
    assert list(found.to_dict()) == ["label", "text", "score", "scores"]


def test_accuracy_of_batches_and_ranks_adds_up() -> None:
    right = torch.rand(50) < 0.3
    whole, pieces = ChoiceAccuracy(), ChoiceAccuracy()
    whole.update(right)
    for piece in right.split([7, 1, 30, 12]):
        pieces.update(piece)
    assert (
        float(whole.compute()["accuracy"])
        == float(pieces.compute()["accuracy"])
        == pytest.approx(float(right.float().mean()))
    )
    reduce = whole._reductions["rows"]
    assert callable(reduce)
    assert reduce(torch.stack([whole.rows, pieces.rows])).tolist() == [2 * int(right.sum()), 100]
