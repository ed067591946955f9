"""Metrics of numbers against scipy and scikit-learn, whatever the batches and ranks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torch import Tensor

from llm_arch.heads.numbers import NumberMetrics, correlation, ranks


def measure(predicted: Tensor, truth: Tensor, cuts: list[int] | None = None) -> NumberMetrics:
    """Fed in the given pieces."""
    metric = NumberMetrics()
    for one, other in zip(predicted.tensor_split(cuts or []), truth.tensor_split(cuts or []), strict=True):
        if len(one):
            metric.update(one, other)
    return metric


def numbers(metric: NumberMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def expected(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    a, b = predicted.double().numpy(), truth.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constants, and gives NaN
        found = {"pearson": scipy.stats.pearsonr(a, b)[0], "spearman": scipy.stats.spearmanr(a, b)[0]}
    constant = len(set(a)) == 1 or len(set(b)) == 1
    found = {name: 0.0 if constant else float(value) for name, value in found.items()}
    return found | {"rmse": root_mean_squared_error(b, a), "mae": mean_absolute_error(b, a)}


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(2, 60),
    seed=st.integers(0, 2**31),
    steps=st.sampled_from([2, 5, 1000]),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    data=st.data(),
)
def test_all_are_those_of_scipy(rows: int, seed: int, steps: int, unit: float, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(steps, (rows,), generator=generator).float() * unit  # few steps: many ties
    noise = torch.randint(steps, (rows,), generator=generator).float() * unit
    predicted = (truth + noise) / 2
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    assert numbers(measure(predicted, truth, cuts)) == pytest.approx(expected(predicted, truth), rel=1e-5, abs=1e-6)


def test_spearman_is_scipys_on_a_thousand_cases_with_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(1000):
        count = int(random.integers(3, 30))
        a, b = (random.integers(0, int(random.integers(2, 12)), count).astype(float) for _ in range(2))
        if len(set(a)) == 1 or len(set(b)) == 1:
            a[0], b[0] = a.max() + 1, b.max() + 1
        ours = float(correlation(ranks(torch.tensor(a)), ranks(torch.tensor(b))))
        assert ours == pytest.approx(float(scipy.stats.spearmanr(a, b)[0]), abs=1e-12)
        assert ranks(torch.tensor(a)).tolist() == scipy.stats.rankdata(a).tolist()


def test_far_from_zero_and_of_any_size() -> None:
    truth = torch.arange(50, dtype=torch.double)
    for scale, shift in ((1.0, 1e9), (1e-160, 0.0), (1e160, 0.0), (1.0, -1e12)):
        assert float(correlation(truth * scale + shift, truth)) == pytest.approx(1.0)
        assert float(correlation(-truth, truth * scale + shift)) == pytest.approx(-1.0)


@pytest.mark.parametrize(("predicted", "truth"), [([2.0, 2.0], [1.0, 3.0]), ([1.0, 3.0], [2.0, 2.0]), ([1.0], [2.0])])
def test_one_number_throughout_correlates_with_nothing(predicted: list[float], truth: list[float]) -> None:
    found = numbers(measure(torch.tensor(predicted), torch.tensor(truth)))
    assert found == pytest.approx({"pearson": 0, "spearman": 0, "rmse": 1, "mae": 1})


def test_a_prediction_that_is_no_number_is_not_hidden() -> None:
    found = numbers(measure(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([1.0, 2.0, 3.0])))
    assert all(math.isnan(value) for value in found.values())


def test_reset_starts_anew_and_nothing_counted_is_zero() -> None:
    metric = measure(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    assert numbers(metric)["mae"] == 0.5
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert numbers(metric) == dict.fromkeys(("pearson", "spearman", "rmse", "mae"), 0.0)


def test_ranks_of_one_run_are_put_together() -> None:
    """As torchmetrics does on each of two ranks, whose shares differ in size."""
    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.randint(7, (2, 41), generator=generator).float()
    shares = [measure(predicted[:25], truth[:25], [3, 20]), measure(predicted[25:], truth[25:])]
    values = [{name: torch.cat(getattr(share, name)) for name in ("predicted", "truth")} for share in shares]

    def gather(value: Tensor, group: object) -> list[Tensor]:
        (name,) = (name for name, mine in values[0].items() if torch.equal(mine, value))
        return [share[name] for share in values]

    shares[0].dist_sync_fn, shares[0].distributed_available_fn = gather, lambda: True
    assert numbers(shares[0]) == numbers(measure(predicted, truth))
