"""Importance from gradients is what explicit gates give, sequence by sequence; from weights, what a loop counts."""

import copy

import pytest
import torch
from torch import nn

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.calibration import Calibration
from llm_arch.compression.fisher import Fisher
from llm_arch.compression.gates import Gates
from llm_arch.compression.importance import products
from llm_arch.compression.magnitude import Magnitude
from llm_arch.compression.structure import Structure, shape_of
from llm_arch.compression.taylor import Taylor

KINDS = pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
LENGTHS = (9, 1, 5, 14)


def derivatives(rows, single):
    """By each gate at 1, of the loss of each sequence alone: (B, H) and (B, N) of each layer, (B, L)."""
    model = rows.backbone.model
    gates, found = Gates(model), []
    gates.attach(model)
    for one in single:
        heads, neurons = ([torch.ones(len(g), requires_grad=True) for g in own] for own in (gates.heads, gates.neurons))
        layers = torch.ones(len(gates.layers), requires_grad=True)
        gates.set_values(heads=heads, neurons=neurons, layers=layers)
        wanted = [*heads, *neurons, layers]
        got = torch.autograd.grad(rows.loss_of(one), wanted, allow_unused=True)
        found.append([torch.zeros_like(w) if g is None else g for w, g in zip(wanted, got, strict=True)])
    gates.detach()
    columns = [torch.stack(column) for column in zip(*found, strict=True)]
    count = len(gates.layers)
    return columns[:count], columns[count : 2 * count], columns[-1]


def observed(rows, batch):
    parts = anatomy(rows.backbone.model)
    with rows.frozen(), products(parts, batch) as found:
        rows.loss_of(batch).backward()
    return found.heads, found.neurons, found.layers


def assert_close(found, expected, tolerance=1e-5):
    for one, other in zip([*found[0], *found[1], found[2]], [*expected[0], *expected[1], expected[2]], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-3, atol=tolerance)


@KINDS
@pytest.mark.parametrize("inside", ["flat", "padded"])
@pytest.mark.parametrize("padded", [False, True], ids=["flat batch", "padded batch"])
def test_products_are_derivatives(kind, inside, padded, calibrated, labelled):
    rows = calibrated(kind, layout=inside)
    single = [labelled([length], first=i) for i, length in enumerate(LENGTHS)]
    expected = derivatives(rows, single)
    assert_close(observed(rows, labelled(LENGTHS, padded=padded)), expected)
    assert all(one.abs().max() > 1e-3 for one in (*expected[0], *expected[1], expected[2]))
    assert all(p.grad is None for part in (rows.backbone, rows.head) for p in part.parameters())


@KINDS
def test_a_sequence_alone(kind, calibrated, labelled):
    rows = calibrated(kind)
    for padded in (False, True):
        assert_close(observed(rows, labelled([6], padded=padded)), derivatives(rows, [labelled([6])]))


@KINDS
def test_a_pruned_model_with_layers_that_lack_something(kind, calibrated, labelled):
    rows = calibrated(kind)
    shape = shape_of(rows.backbone.model)
    heads, neurons = (tuple(range(size[0])) for size in (shape.heads, shape.neurons))
    rows.backbone.prune(Structure((0, 1, 2), (heads[1:], (), heads), (neurons[2:], neurons[::2], ()), shape))
    found = observed(rows, labelled(LENGTHS))
    assert [one.shape for one in found[0]] == [(4, len(heads) - 1), (4, 0), (4, len(heads))]
    assert [one.shape for one in found[1]] == [(4, 10), (4, 6), (4, 0)]
    assert_close(found, derivatives(rows, [labelled([length], first=i) for i, length in enumerate(LENGTHS)]))


@KINDS
def test_frozen_weights_make_no_difference(kind, calibrated, labelled):
    rows = calibrated(kind)
    free = observed(rows, labelled())
    for parameter in rows.backbone.parameters():
        parameter.requires_grad_(False)
    assert_close(observed(rows, labelled()), free, 1e-7)
    assert not any(p.requires_grad for p in rows.backbone.parameters())
    assert all(p.requires_grad for p in rows.head.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("method", [Fisher(), Taylor()], ids=["fisher", "taylor"])
def test_means_over_sequences_whatever_the_batches(kind, method, calibrated, labelled):
    rows = calibrated(kind)
    single = [labelled([length], first=i) for i, length in enumerate(LENGTHS)]
    raw = derivatives(rows, single)

    def mean(values):
        return (values**2 / 2 if isinstance(method, Fisher) else values.abs()).sum(0) / len(LENGTHS)

    expected = [mean(one) for one in raw[0]], [mean(one) for one in raw[1]], mean(raw[2])
    parts = anatomy(rows.backbone.model)
    for batches in (single, [labelled(LENGTHS)], [labelled(LENGTHS[:3], padded=True), single[3]]):
        with rows.frozen():
            found = method(parts, rows.loss_of, batches)
        assert_close((found.heads, found.neurons, found.layers), expected)
    assert all(p.grad is None for p in rows.backbone.parameters())


def test_no_rows_no_importance(calibrated):
    rows = calibrated("bert")
    found = Fisher()(anatomy(rows.backbone.model), rows.loss_of, [])
    assert not found.layers.any()


@KINDS
def test_magnitude_is_the_norm_of_what_a_unit_writes(kind, calibrated):
    rows = calibrated(kind)
    model = rows.backbone.model
    whole = Structure.whole(model)
    rows.backbone.prune(Structure(whole.layers, (*whole.heads[:2], ()), whole.neurons, whole.of))
    parts = anatomy(model)
    found = Magnitude()(parts, rows.loss_of, [])
    for layer, part in enumerate(parts):
        total = 0.0
        for out, units, scores in (
            (part.attention_out, part.heads, found.heads[layer]),
            (part.ffn_out, part.neurons, found.neurons[layer]),
        ):
            assert len(scores) == units
            for unit in range(units):
                columns = out.weight.shape[0 if kind == "gpt2" else 1] // units
                written = 0.0
                for column in range(unit * columns, (unit + 1) * columns):
                    # What one activation of 1 adds to the states.
                    given = torch.zeros(1, units * columns)
                    given[0, column] = 1.0
                    with torch.no_grad():
                        written += float((out(given) - out(torch.zeros_like(given))).square().sum())
                assert float(scores[unit]) == pytest.approx(written, rel=1e-4)
                total += written
        assert float(found.layers[layer]) == pytest.approx(total, rel=1e-4)


def test_hooks_are_gone_afterwards(calibrated, labelled):
    rows = calibrated("bert")
    observed(rows, labelled())
    with pytest.raises(RuntimeError), products(anatomy(rows.backbone.model), labelled()):
        raise RuntimeError
    hooks = [m for m in rows.backbone.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_gradients_of_other_uses_stay(calibrated, labelled):
    """Pruning within a training run looks at a copy of the backbone, and at the head itself."""
    rows = calibrated("bert")
    linear = rows.head.classify
    linear.weight.grad = torch.ones_like(linear.weight)
    alone = Calibration(copy.deepcopy(rows.backbone), rows.head, rows.batches)
    with alone.frozen():
        Fisher()(anatomy(alone.backbone.model), alone.loss_of, [labelled()])
    assert bool((linear.weight.grad == 1).all())
    assert isinstance(linear, nn.Linear)
