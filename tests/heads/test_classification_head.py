"""The classification head: logits, losses against closed forms and torch's own, weights, predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, cross_entropy

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import LabelPrediction, LabelSetPrediction, SequenceClassification
from llm_arch.types import Batch, Hidden, LabelSpace, UserError

D = 5
LENGTHS = [3, 1, 4, 2]
ABC = LabelSpace(("a", "b", "c"), (6, 3, 1))
AB = LabelSpace(("no", "yes"), (8, 2))
TAGS = LabelSpace(("x", "y", "z"), (1, 2, 3), multi=True)


def batch_of(labels: Tensor | None = None, lengths: list[int] | None = None, layout: str = "flat") -> Batch:
    lengths = lengths or LENGTHS
    rows = [[1] * n for n in lengths]
    index = [10 + i for i in range(len(rows))]
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": index}
    return make_batch(columns, layout, {} if labels is None else {"label": labels})


def head_of(labels: LabelSpace, **options: Any) -> SequenceClassification:
    head = SequenceClassification(D, labels, **{"dropout": 0.0, "pooling": "first", **options})
    with torch.no_grad():
        head.classify.weight.normal_()
        head.classify.bias.normal_()
    return head


def states(seed: int = 0, lengths: list[int] | None = None) -> Tensor:
    return torch.randn(sum(lengths or LENGTHS), D, generator=torch.Generator().manual_seed(seed))


def logits_of(head: SequenceClassification, hidden_TD: Tensor) -> Tensor:
    """Written out: the first state of each sequence through the linear layer."""
    firsts = [0, 3, 4, 8]
    return torch.stack([head.classify.weight @ hidden_TD[i] + head.classify.bias for i in firsts])


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


# Losses


def test_logits_are_the_linear_layer_on_the_pooled_state() -> None:
    head = head_of(ABC)
    torch.testing.assert_close(head(Hidden(states()), batch_of()), logits_of(head, states()))
    assert head_of(AB, binary=True)(Hidden(states()), batch_of()).shape == (4, 1)
    assert head_of(TAGS)(Hidden(states()), batch_of()).shape == (4, 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, "balanced", {"b": 3.0}])
def test_cross_entropy_is_torchs(smoothing: float, weights: Any) -> None:
    head = head_of(ABC, class_weights=weights, label_smoothing=smoothing)
    truth = torch.tensor([0, 2, 1, 0])
    given = None
    if weights is not None:
        given = torch.tensor([10 / 18, 10 / 9, 10 / 3] if weights == "balanced" else [1.0, 3.0, 1.0])
    expected = cross_entropy(logits_of(head, states()), truth, weight=given, label_smoothing=smoothing)
    loss = head.loss(Hidden(states()), batch_of(truth))
    torch.testing.assert_close(loss.mean, expected)
    torch.testing.assert_close(loss.sum, expected * (4 if given is None else given[truth].sum()))


def test_cross_entropy_in_closed_form() -> None:
    head = head_of(ABC)
    truth = torch.tensor([0, 2, 1, 0])
    rows = logits_of(head, states()).tolist()
    expected = sum(
        math.log(sum(math.exp(z) for z in row)) - row[t] for row, t in zip(rows, truth.tolist(), strict=True)
    )
    loss = head.loss(Hidden(states()), batch_of(truth))
    assert float(loss.sum.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.denominator == 4


def test_smoothing_in_closed_form() -> None:
    # (1 − s) of the target on the label, s/C on every class.
    head = head_of(ABC, label_smoothing=0.3)
    truth = torch.tensor([0, 2, 1, 0])
    logs = logits_of(head, states()).log_softmax(1)
    target = torch.full((4, 3), 0.1)
    target[range(4), truth] += 0.7
    torch.testing.assert_close(head.loss(Hidden(states()), batch_of(truth)).sum, -(target * logs).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_in_closed_form(smoothing: float) -> None:
    head = head_of(AB, binary=True, label_smoothing=smoothing)
    truth = torch.tensor([1, 0, 0, 1])
    logits = logits_of(head, states())[:, 0].tolist()
    target = [(1 - smoothing) * t + smoothing / 2 for t in truth.tolist()]
    # −[y log σ(z) + (1 − y) log(1 − σ(z))]
    expected = sum(y * softplus(-z) + (1 - y) * softplus(z) for y, z in zip(target, logits, strict=True))
    loss = head.loss(Hidden(states()), batch_of(truth))
    assert float(loss.sum.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.denominator == 4


@given(seed=st.integers(0, 1000), smoothing=st.sampled_from([0.0, 0.1]))
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_binary_cross_entropy_is_sigmoid_minus_target(seed: int, smoothing: float) -> None:
    head = head_of(AB, binary=True, label_smoothing=smoothing)
    truth = torch.tensor([1, 0, 0, 1])
    hidden = states(seed).requires_grad_()
    head.loss(Hidden(hidden), batch_of(truth)).mean.backward()
    with torch.no_grad():
        excess = logits_of(head, hidden)[:, 0].sigmoid() - (truth * (1 - smoothing) + smoothing / 2)
        expected = torch.zeros_like(hidden)
        for start, row in zip([0, 3, 4, 8], excess, strict=True):
            expected[start] = row * head.classify.weight[0] / 4
        weight = sum(row * hidden[start] for start, row in zip([0, 3, 4, 8], excess, strict=True)) / 4
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-4, atol=1e-6)
    assert head.classify.weight.grad is not None
    torch.testing.assert_close(head.classify.weight.grad[0], weight, rtol=1e-4, atol=1e-6)


def test_a_binary_head_is_a_softmax_of_two_that_share_one_logit() -> None:
    one, two = head_of(AB, binary=True), head_of(AB)
    with torch.no_grad():
        two.classify.weight.copy_(torch.cat([torch.zeros(1, D), one.classify.weight]))
        two.classify.bias.copy_(torch.cat([torch.zeros(1), one.classify.bias]))
    batch = batch_of(torch.tensor([1, 0, 0, 1]))
    torch.testing.assert_close(one.loss(Hidden(states()), batch).sum, two.loss(Hidden(states()), batch).sum)
    for a, b in zip(
        one.decode(one(Hidden(states()), batch), batch), two.decode(two(Hidden(states()), batch), batch), strict=True
    ):
        assert isinstance(a, LabelPrediction)
        assert isinstance(b, LabelPrediction)
        assert a.label == b.label
        assert a.scores == pytest.approx(b.scores, abs=1e-6)


def test_binary_weights_are_by_the_rows_label() -> None:
    head = head_of(AB, binary=True, class_weights="balanced")
    truth = torch.tensor([1, 0, 0, 1])
    weights = torch.tensor([10 / 4, 10 / 16, 10 / 16, 10 / 4])
    chance = logits_of(head, states())[:, 0].sigmoid()
    expected = binary_cross_entropy(chance, truth.float(), weight=weights, reduction="sum")
    loss = head.loss(Hidden(states()), batch_of(truth))
    torch.testing.assert_close(loss.sum, expected)
    torch.testing.assert_close(loss.mean, expected / weights.sum())


SETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def test_sets_of_labels_are_binary_decisions_averaged_over_labels() -> None:
    head = head_of(TAGS)
    chance = logits_of(head, states()).sigmoid()
    loss = head.loss(Hidden(states()), batch_of(SETS))
    torch.testing.assert_close(loss.mean, binary_cross_entropy(chance, SETS))
    assert loss.denominator == 4


def test_weights_of_sets_strengthen_presence_only() -> None:
    head = head_of(TAGS, class_weights={"x": 5.0})
    chance = logits_of(head, states()).sigmoid()
    weights = torch.ones_like(SETS)
    weights[[0, 2], 0] = 5.0
    loss = head.loss(Hidden(states()), batch_of(SETS))
    torch.testing.assert_close(loss.sum, binary_cross_entropy(chance, SETS, weights, reduction="none").mean(1).sum())
    assert loss.denominator == 4


@pytest.mark.parametrize("labels", [ABC, TAGS])
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_loss_of_a_batch_is_that_of_its_parts(labels: LabelSpace, weights: Any) -> None:
    head = head_of(labels, class_weights=weights, label_smoothing=0.1)
    truth = SETS if labels.multi else torch.tensor([0, 2, 1, 0])
    whole = head.loss(Hidden(states()), batch_of(truth))
    parts = [
        head.loss(Hidden(states()[:4]), batch_of(truth[:2], [3, 1])),
        head.loss(Hidden(states()[4:]), batch_of(truth[2:], [4, 2])),
    ]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert float(sum(p.denominator for p in parts)) == pytest.approx(float(whole.denominator))


def test_half_precision_states_give_a_loss_in_fp32() -> None:
    head = head_of(ABC).bfloat16()
    loss = head.loss(Hidden(states().bfloat16()), batch_of(torch.tensor([0, 2, 1, 0])))
    assert loss.sum.dtype == torch.float32


def test_dropout_is_on_in_training_only() -> None:
    head = head_of(ABC, dropout=0.5)
    hidden = Hidden(states())
    assert not torch.equal(head(hidden, batch_of()), head(hidden, batch_of()))
    head.eval()
    torch.testing.assert_close(head(hidden, batch_of()), logits_of(head, states()))


# Pooling


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_pooling_of_the_head(pooling: Any, layout: str) -> None:
    head = head_of(ABC, pooling=pooling)
    parts = states().split(LENGTHS)
    pool = {
        "first": lambda s: s[0],
        "last": lambda s: s[-1],
        "mean": lambda s: s.sum(0) / len(s),
        "max": lambda s: s.max(0).values,
    }[pooling]
    expected = torch.stack([head.classify(pool(part)) for part in parts])
    batch = batch_of(layout=layout)
    hidden_TD = states()
    if batch.valid is not None:
        hidden_TD = torch.full((len(batch.valid), D), 1e3)  # padding must not count, whatever it holds
        hidden_TD[batch.valid] = states()
    torch.testing.assert_close(head(Hidden(hidden_TD), batch), expected)


def test_pooling_comes_from_the_backbone_unless_given() -> None:
    encoder, decoder = Pretrained("tiny:bert"), Pretrained("tiny:gpt2")
    for backbone, pooling in ((encoder, "mean"), (decoder, "last")):
        free, told = SequenceClassification(32, ABC), SequenceClassification(32, ABC, pooling="max")
        free.bind(backbone)
        told.bind(backbone)
        assert (free.pooling, told.pooling) == (pooling, "max")


# Predictions and metrics


def test_one_label_a_row_is_the_most_probable() -> None:
    head = head_of(ABC)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    found = head.decode(logits, batch_of(lengths=[1, 1]))
    assert [p.index for p in found] == [10, 11]
    first = found[0]
    assert isinstance(first, LabelPrediction)
    total = math.exp(2) + math.e + 1
    assert first.scores == pytest.approx({"a": math.exp(2) / total, "b": math.e / total, "c": 1 / total})
    assert (first.label, first.score) == ("a", first.scores["a"])
    assert found[1].to_dict()["label"] == "c"
    assert list(found[1].to_dict()) == ["label", "score", "scores"]


@pytest.mark.parametrize(("threshold", "labels"), [(0.5, ["no", "yes", "yes"]), (0.9, ["no", "no", "yes"])])
def test_yes_or_no_by_the_threshold(threshold: float, labels: list[str]) -> None:
    head = head_of(AB, binary=True, threshold=threshold)
    found = head.decode(torch.tensor([[-1.0], [0.0], [3.0]]), batch_of(lengths=[1, 1, 1]))
    assert [p.label for p in found if isinstance(p, LabelPrediction)] == labels
    assert isinstance(found[0], LabelPrediction)
    assert found[0].scores == pytest.approx({"no": 1 / (1 + math.exp(-1)), "yes": 1 / (1 + math.e)})
    assert all(p.score == p.scores[p.label] for p in found if isinstance(p, LabelPrediction))


def test_sets_of_labels_hold_what_reaches_the_threshold() -> None:
    head = head_of(TAGS)
    found = head.decode(torch.tensor([[1.0, 0.0, -1.0], [-1.0, -2.0, -3.0]]), batch_of(lengths=[1, 1]))
    assert [p.labels for p in found if isinstance(p, LabelSetPrediction)] == [["x", "y"], []]
    assert found[0].to_dict()["scores"]["z"] == pytest.approx(1 / (1 + math.e))
    strict = head_of(TAGS, threshold=0.6)
    assert strict.classes(torch.tensor([[1.0, 0.0, -1.0]])).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "options", "truth"),
    [(ABC, {}, torch.tensor([0, 2, 1, 0])), (AB, {"binary": True}, torch.tensor([1, 0, 0, 1])), (TAGS, {}, SETS)],
)
def test_metrics_count_what_decode_says(labels: LabelSpace, options: dict[str, Any], truth: Tensor) -> None:
    head = head_of(labels, **options)
    batch = batch_of(truth)
    logits = head(Hidden(states(3)), batch)
    metric = head.metrics()
    metric.update(*head.metric_inputs(logits, batch))
    right = 0
    for prediction, one in zip(head.decode(logits, batch), truth, strict=True):
        if isinstance(prediction, LabelSetPrediction):
            right += set(prediction.labels) == {n for n, here in zip(labels.names, one, strict=True) if here}
        else:
            assert isinstance(prediction, LabelPrediction)
            right += prediction.label == labels.names[int(one)]
    assert float(metric.compute()["accuracy"]) == right / 4
    assert head.major in metric.compute()
    assert head.mode == "max"
    assert head.major == ("macro_f1" if labels.multi else "accuracy")


def test_weights_are_no_part_of_the_saved_state() -> None:
    assert set(head_of(ABC, class_weights="balanced").state_dict()) == {"classify.weight", "classify.bias"}


def test_a_fresh_head_has_small_weights_and_no_bias() -> None:
    head = SequenceClassification(400, ABC)
    assert float(head.classify.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert not head.classify.bias.any()
    assert isinstance(head.dropout, nn.Dropout)
    assert head.dropout.p == 0.1


# What the user is told


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LabelSpace(("a",)), {}, r"at least two labels, the data has \['a'\]"),
        (ABC, {"binary": True}, "binary: true needs exactly two labels, the data has 3"),
        (LabelSpace(("a", "b"), None, True), {"binary": True}, "binary: true needs exactly two labels"),
        (ABC, {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (ABC, {"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
        (ABC, {"threshold": 0.0}, r"threshold must be in \(0, 1\), got 0.0"),
        (ABC, {"threshold": 1.0}, r"threshold must be in \(0, 1\), got 1.0"),
        (ABC, {"class_weights": {"d": 1.0}}, "unknown label 'd'; the labels are: a, b, c"),
        (ABC, {"class_weights": {"a": -1.0}}, "class_weights must be finite and not negative, got -1.0 for 'a'"),
        (ABC, {"class_weights": {"b": math.nan}}, "class_weights must be finite and not negative, got nan for 'b'"),
        (ABC, {"class_weights": {"b": math.inf}}, "class_weights must be finite and not negative, got inf for 'b'"),
        (ABC, {"class_weights": "equal"}, "class_weights must be balanced or a mapping .*, got 'equal'"),
        (LabelSpace(("a", "b")), {"class_weights": "balanced"}, "balanced needs label counts"),
    ],
)
def test_impossible_arguments_are_refused(labels: LabelSpace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SequenceClassification(D, labels, **options)


def test_balanced_weights_of_a_label_without_rows_are_finite() -> None:
    head = head_of(LabelSpace(("a", "b"), (4, 0)), class_weights="balanced")
    assert head.weights_C is not None
    assert head.weights_C.tolist() == [0.5, 2.0]
