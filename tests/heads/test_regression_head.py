"""The head for numbers: errors against torch's own on standardised targets, and predictions in the data's unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.regression import NumberPrediction, Regression
from llm_arch.types import Batch, Hidden, LabelSpace, UserError

D = 5
LENGTHS = [3, 1, 4, 2]
STARS = LabelSpace((), moments=(200.0, 50.0))
TRUTH = [150.0, 200.0, 275.0, 500.0]
ERRORS = {"mse": mse_loss, "mae": l1_loss, "huber": lambda a, b, **options: huber_loss(a, b, delta=0.7, **options)}


def batch_of(targets: list[float] | None = None, lengths: list[int] | None = None, layout: str = "flat") -> Batch:
    rows = [[1] * n for n in lengths or LENGTHS]
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": [10 + i for i in range(len(rows))]}
    return make_batch(columns, layout, {} if targets is None else {"target": torch.tensor(targets)})


def head_of(labels: LabelSpace = STARS, **options: Any) -> Regression:
    head = Regression(D, labels, **{"dropout": 0.0, "pooling": "mean", "delta": 0.7, **options})
    with torch.no_grad():
        head.rate.weight.normal_()
        head.rate.bias.normal_()
    return head


def states(seed: int = 0) -> Tensor:
    return torch.randn(sum(LENGTHS), D, generator=torch.Generator().manual_seed(seed))


def written_out(head: Regression, hidden_TD: Tensor) -> Tensor:
    """The mean state of each sequence through the linear layer."""
    return torch.stack([part.mean(0) @ head.rate.weight[0] + head.rate.bias[0] for part in hidden_TD.split(LENGTHS)])


@pytest.mark.parametrize("error", ERRORS)
def test_the_error_is_of_standardised_targets(error: Any) -> None:
    head = head_of(loss=error)
    loss = head.loss(Hidden(states()), batch_of(TRUTH))
    standardised = torch.tensor([-1.0, 0.0, 1.5, 6.0])
    torch.testing.assert_close(loss.mean, ERRORS[error](written_out(head, states()), standardised))
    assert loss.denominator == 4


@pytest.mark.parametrize("error", ERRORS)
def test_the_loss_of_a_batch_is_that_of_its_parts(error: Any) -> None:
    head = head_of(loss=error)
    whole = head.loss(Hidden(states()), batch_of(TRUTH))
    parts = [
        head.loss(Hidden(states()[:4]), batch_of(TRUTH[:2], LENGTHS[:2])),
        head.loss(Hidden(states()[4:]), batch_of(TRUTH[2:], LENGTHS[2:])),
    ]
    torch.testing.assert_close(parts[0].sum + parts[1].sum, whole.sum)
    assert float(parts[0].denominator) + float(parts[1].denominator) == 4


def test_the_unit_of_the_data_does_not_change_the_loss() -> None:
    one, other = head_of(), head_of(LabelSpace((), moments=(2e6, 5e5)))
    other.rate.load_state_dict(one.rate.state_dict())
    losses = [
        head.loss(Hidden(states()), batch_of([t * unit for t in TRUTH])).sum for head, unit in ((one, 1), (other, 1e4))
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_without_moments_targets_are_as_they_are() -> None:
    head = head_of(LabelSpace(()))
    loss = head.loss(Hidden(states()), batch_of(TRUTH))
    torch.testing.assert_close(loss.mean, mse_loss(written_out(head, states()), torch.tensor(TRUTH)))


def test_predictions_and_metrics_are_in_the_unit_of_the_data() -> None:
    head, batch = head_of(), batch_of(TRUTH)
    logits = head(Hidden(states()), batch)
    values = (written_out(head, states()) * 50 + 200).tolist()
    found = head.decode(logits, batch)
    assert [p.index for p in found] == [10, 11, 12, 13]
    assert [p.value for p in found if isinstance(p, NumberPrediction)] == pytest.approx(values)
    assert found[0].to_dict() == {"value": pytest.approx(values[0])}
    metric = head.metrics()
    metric.update(*head.metric_inputs(logits, batch))
    assert float(metric.compute()["mae"]) == pytest.approx(
        sum(abs(a - b) for a, b in zip(values, TRUTH, strict=True)) / 4
    )
    assert head.major in metric.compute()
    assert (head.major, head.mode) == ("pearson", "max")


def test_moments_are_part_of_the_saved_state() -> None:
    head = head_of()
    assert set(head.state_dict()) == {"rate.weight", "rate.bias", "mean", "deviation"}
    other = Regression(D, LabelSpace(()), dropout=0.0, pooling="mean")
    other.load_state_dict(head.state_dict())
    batch = batch_of()
    assert other.decode(other(Hidden(states()), batch), batch) == head.decode(head(Hidden(states()), batch), batch)


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_layouts_agree(pooling: Any) -> None:
    head, padded = head_of(pooling=pooling), batch_of(layout="padded")
    assert padded.valid is not None
    spread = torch.full((len(padded.valid), D), 1e3)  # padding must not count, whatever it holds
    spread[padded.valid] = states()
    torch.testing.assert_close(head(Hidden(spread), padded), head(Hidden(states()), batch_of()))


def test_half_precision_states_give_a_loss_in_fp32() -> None:
    head = head_of()
    head.rate.bfloat16()
    assert head.loss(Hidden(states().bfloat16()), batch_of(TRUTH)).sum.dtype == torch.float32


def test_pooling_comes_from_the_backbone_unless_given() -> None:
    free, told = Regression(32, STARS), Regression(32, STARS, pooling="max")
    for head in (free, told):
        head.bind(Pretrained("tiny:bert"))
    assert (free.pooling, told.pooling) == ("mean", "max")


def test_data_of_another_kind() -> None:
    message = "^regression needs rows with a number, which the data module doesn't give"
    with pytest.raises(UserError, match=message):
        head_of().loss(Hidden(states()), batch_of())
    with pytest.raises(UserError, match=message):
        head_of().metric_inputs(torch.zeros(4), batch_of())


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LabelSpace(("a", "b")), {}, "regression needs numbers, the data has labels: a, b"),
        (STARS, {"loss": "l3"}, "loss must be mse, huber or mae, got 'l3'"),
        (STARS, {"delta": 0.0}, "delta must be above 0, got 0.0"),
    ],
)
def test_impossible_arguments_are_refused(labels: LabelSpace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Regression(D, labels, **options)
