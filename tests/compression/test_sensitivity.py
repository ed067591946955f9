"""What models lose without their parts, against sums written out and against models that are really pruned."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.fisher import Fisher
from llm_arch.compression.gates import Gates
from llm_arch.compression.importance import Scores
from llm_arch.compression.macs import macs_prices
from llm_arch.compression.sensitivity import added_up, measured
from llm_arch.compression.solver import solve
from llm_arch.compression.structure import Structure
from llm_arch.types import UserError

NUMBERS = st.floats(0, 1e3, width=32)
UNITS = st.lists(st.lists(NUMBERS, max_size=6), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(UNITS, UNITS, st.data())
def test_added_up(heads, neurons, data):
    count = min(len(heads), len(neurons))
    layers = data.draw(st.lists(NUMBERS, min_size=count, max_size=count))
    heads, neurons = ([torch.tensor(one) for one in units[:count]] for units in (heads, neurons))
    losses = added_up(Scores(heads, neurons, torch.tensor(layers)))
    for units, found in ((heads, losses.heads), (neurons, losses.neurons)):
        for scores, values in zip(units, found, strict=True):
            assert len(values) == len(scores) + 1
            for kept, value in enumerate(values):
                gone = sorted(scores.tolist(), reverse=True)[kept:]
                assert value == pytest.approx(sum(gone), rel=1e-6, abs=1e-9)
            assert (np.diff(values) <= 0).all()
    # A layer is worth no more than all its units.
    units = [float(h.double().sum() + n.double().sum()) for h, n in zip(heads, neurons, strict=True)]
    expected = [min(one, whole) for one, whole in zip(torch.tensor(layers).tolist(), units, strict=True)]
    assert losses.layers == pytest.approx(expected, rel=1e-6, abs=1e-9)


def pruned_loss(rows, keep):
    alone = copy.deepcopy(rows)
    alone.backbone.prune(keep)
    return alone.mean_loss()


def expected_units(rows, name, layer, scores, whole_loss):
    """By pruning copies, for every number of units that the shares make."""
    whole = Structure.whole(rows.backbone.model)
    units, found, worst = len(scores), {len(scores): 0.0}, 0.0
    order = sorted(range(units), key=lambda unit: -float(scores[unit]))
    numbers = {round(share * units) for share in (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)} - {units}
    for kept in sorted(numbers, reverse=True):
        sizes = {"heads": list(whole.heads), "neurons": list(whole.neurons)}
        sizes[name][layer] = tuple(sorted(order[:kept]))
        lost = pruned_loss(rows, Structure(whole.layers, *(tuple(s) for s in sizes.values()), whole.of)) - whole_loss
        worst = max(worst, lost)
        found[kept] = worst
    return found


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_measured_is_what_pruned_copies_lose(kind, calibrated):
    rows = calibrated(kind, config={"num_hidden_layers": 2})
    model = rows.backbone.model
    with rows.frozen():
        scores = Fisher()(anatomy(model), rows.loss_of, rows.batches)
    before = {name: value.clone() for name, value in rows.backbone.state_dict().items()}
    gates = Gates(model)
    gates.attach(model)
    steps = []
    losses = measured(gates, scores, rows.mean_loss, steps.append)
    assert all(bool((gate == 1).all()) for gate in (*gates.heads, *gates.neurons, gates.layers))
    gates.detach()
    assert all(value.equal(before[name]) for name, value in rows.backbone.state_dict().items())
    assert steps == list(range(len(steps), 0, -1))
    whole_loss, whole = rows.mean_loss(), Structure.whole(model)
    for layer in range(2):
        for name in ("heads", "neurons"):
            values, own = getattr(losses, name)[layer], getattr(scores, name)[layer]
            expected = expected_units(rows, name, layer, own, whole_loss)
            assert (np.diff(values) < 0).all()
            assert values[-1] == 0
            for kept, value in expected.items():
                assert values[kept] == pytest.approx(value, abs=5e-6)
            assert values == pytest.approx(
                np.interp(range(len(values)), sorted(expected), [expected[kept] for kept in sorted(expected)]), abs=5e-6
            )
        left = 1 - layer
        alone = Structure((left,), (whole.heads[left],), (whole.neurons[left],), whole.of)
        assert losses.layers[layer] == pytest.approx(max(0.0, pruned_loss(rows, alone) - whole_loss), abs=5e-6)
    assert len(steps) == 1 + 2 + sum(
        len({round(s * len(one)) for s in (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)} - {len(one)})
        for one in (*scores.heads, *scores.neurons)
    )


def test_layers_that_lack_something(calibrated):
    rows = calibrated("bert", config={"num_hidden_layers": 2})
    model = rows.backbone.model
    whole = Structure.whole(model)
    rows.backbone.prune(Structure((0, 1), ((), whole.heads[1]), (whole.neurons[0], ()), whole.of))
    with rows.frozen():
        scores = Fisher()(anatomy(model), rows.loss_of, rows.batches)
    gates = Gates(model)
    gates.attach(model)
    losses = measured(gates, scores, rows.mean_loss)
    gates.detach()
    assert [list(losses.heads[0]), list(losses.neurons[1])] == [[0.0], [0.0]]
    # Without its neurons the first layer, which has no heads, is not there; with few it may lose even more.
    assert losses.neurons[0][0] >= losses.layers[0] - 5e-6


def test_no_more_goes_than_was_asked_for_though_nothing_is_lost(calibrated):
    """What does no harm one by one may do some together."""
    rows = calibrated("bert")
    rows.head.classify.weight.data.zero_()
    model = rows.backbone.model
    with rows.frozen():
        scores = Fisher()(anatomy(model), rows.loss_of, rows.batches)
    gates = Gates(model)
    gates.attach(model)
    losses = measured(gates, scores, rows.mean_loss)
    gates.detach()
    prices = macs_prices(model, [8])
    whole = prices.total([(4, 12)] * 3)
    for times in (1.2, 1.5, 2.0):
        assert 0.85 * whole / times < prices.total(solve(losses, prices, whole / times)) <= whole / times


def test_numbers_that_are_none():
    scores = Scores([torch.tensor([1.0, float("nan")])], [torch.ones(2)], torch.ones(1))
    with pytest.raises(UserError, match="importance of the parts is not finite"):
        added_up(scores)


def test_losses_that_are_no_numbers():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    gates = Gates(BertModel(config, add_pooling_layer=False))
    scores = Scores([torch.arange(2.0)] * 2, [torch.arange(16.0)] * 2, torch.ones(2))
    with pytest.raises(UserError, match="the loss of the rows that pruning looks at is nan"):
        measured(gates, scores, lambda: float("nan"))
    # Without the second layer numbers overflow: nothing is worth more.
    losses = measured(gates, scores, lambda: 1.0 if gates.layers[1] else float("inf"))
    assert losses.layers[1] == pytest.approx(1e6)
    assert losses.layers[0] < 1e-3
