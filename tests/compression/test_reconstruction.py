"""Least squares brings the states of each sublayer nearer to those of the dense model, and back where that can be."""

import copy

import pytest
import torch

from llm_arch.compression import reconstruction
from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.gates import Gates
from llm_arch.compression.reconstruction import reconstruct, take_projections
from llm_arch.compression.structure import Structure, shape_of
from llm_arch.types import UserError

KINDS = pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
LENGTHS = (14, 11, 20, 7, 16, 9, 20, 18)
# What takes the states after a layer's attention, before any norm; None: what the layer gives, for the feed-forward.
AFTER_ATTENTION = {
    "bert": "attention.output.LayerNorm",
    "gpt2": "ln_2",
    "modernbert": "mlp_norm",
    "llama": "post_attention_layernorm",
}
AFTER_FFN = {"bert": "output.LayerNorm"}


@torch.no_grad()
def states(backbone, batch):
    last = backbone(batch).last_TD
    return last if batch.valid is None else last[batch.valid]


def taken(module, run):
    """What a module is given."""
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    return seen[0][0]


def made(module, run):
    seen = []
    handle = module.register_forward_hook(lambda module, args, out: seen.append(out))
    run()
    handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0]).detach()[0]


def after(kind, layer, name, run):
    """(T, D): the states after one of a layer's two parts, found by what the architecture does next."""
    place = AFTER_ATTENTION[kind] if name == "attention_out" else AFTER_FFN.get(kind)
    return made(layer, run) if place is None else taken(layer.get_submodule(place), run)


def uneven(shape):
    heads, neurons = (tuple(range(size[0])) for size in (shape.heads, shape.neurons))
    return Structure((0, 2), (heads[1:], heads[:-1]), (neurons[4:], neurons[::2]), shape)


def pruned_of(backbone, keep):
    small = copy.deepcopy(backbone)
    small.prune(keep)
    return small


def runs_of(small, dense, batches):
    return [(lambda b=batch: small(b), lambda b=batch: dense(b), batch.lengths) for batch in batches]


@KINDS
def test_no_sublayer_is_farther_off_than_before(kind, make_backbone, labelled, monkeypatch):
    """Nor are its states other than the best that its inputs allow."""
    dense, batch = make_backbone(kind), labelled(LENGTHS)
    keep = uneven(shape_of(dense.model))
    small = pruned_of(dense, keep)
    fit, errors, names = reconstruction._fit, [], []

    def error(projection):
        for place, part in enumerate(anatomy(small.model)):
            for name in ("attention_out", "ffn_out"):
                if getattr(part, name) is projection:
                    layers = [anatomy(m.model)[i].layer for m, i in ((small, place), (dense, keep.layers[place]))]
                    own, wanted = (
                        after(kind, layer, name, lambda m=model: states(m, batch))
                        for layer, model in zip(layers, (small, dense), strict=True)
                    )
                    names.append((place, name))
                    given = taken(projection, lambda: states(small, batch))
                    return float((own - wanted).square().sum()), own, wanted, given
        raise AssertionError("no output projection")

    def watched(fitted, wanted, runs, damping):
        before, own, aim, given = error(fitted.projection)
        fit(fitted, wanted, runs, damping)
        now = error(fitted.projection)[0]
        # The smallest error there is, by another solver.
        inputs = given if fitted.projection.bias is None else torch.cat([given, torch.ones(len(given), 1)], 1)
        missing = (aim - own).double().numpy()
        change = torch.linalg.lstsq(inputs.double(), torch.from_numpy(missing)).solution.numpy()
        least = float(((missing - inputs.double().numpy() @ change) ** 2).sum())
        errors.append((before, now, least))

    monkeypatch.setattr(reconstruction, "_fit", watched)
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]), damping=1e-4)
    assert len(errors) == 4
    assert {name for _, name in names} == {"attention_out", "ffn_out"}
    for before, now, least in errors:
        assert now <= before * (1 + 1e-6)
        assert now < 0.98 * before or before < 1e-6
        assert now <= least * 1.02 + 1e-4


@KINDS
@pytest.mark.parametrize("damping", [0.01, 10.0, 1e4])
def test_states_come_nearer(kind, damping, make_backbone, labelled):
    dense, batches = make_backbone(kind), [labelled(LENGTHS[:4]), labelled(LENGTHS[4:], first=4)]
    keep = uneven(shape_of(dense.model))
    keep = Structure((0, 1, 2), (keep.heads[0], *keep.heads), (keep.neurons[0], *keep.neurons), keep.of)
    small = pruned_of(dense, keep)
    plain = copy.deepcopy(small)
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, batches), damping=damping)

    def error(one):
        layers = [anatomy(m.model)[0] for m in (one, dense)]
        own, wanted = (
            after(kind, part.layer, "attention_out", lambda m=m: states(m, batches[0]))
            for part, m in zip(layers, (one, dense), strict=True)
        )
        return float((own - wanted).square().sum())

    assert error(small) <= error(plain) * (1 + 1e-5)
    far = [float((states(m, batches[0]) - states(dense, batches[0])).square().sum()) for m in (small, plain)]
    if damping == 0.01:
        assert far[0] < 0.8 * far[1]
    if damping == 1e4:  # weights hardly change, only biases
        for own, other in zip(anatomy(small.model), anatomy(plain.model), strict=True):
            torch.testing.assert_close(own.ffn_out.weight, other.ffn_out.weight, rtol=0, atol=1e-2)
            torch.testing.assert_close(own.attention_out.weight, other.attention_out.weight, rtol=0, atol=1e-2)


def copy_unit(projection, source, target, units):
    """Let one of the units that a projection gives be computed as another."""
    linear = projection.linear
    weight = linear.weight if isinstance(linear, torch.nn.Linear) else linear.weight.T
    for values in (weight, linear.bias):
        if values is not None:
            of_units = values.unflatten(0, (projection.blocks, units, -1))
            of_units[:, target] = of_units[:, source]


@KINDS
def test_what_others_can_give_is_recovered(kind, make_backbone, labelled):
    """Pruned heads and neurons are copies of kept ones, so that nothing need be lost."""
    dense, batch = make_backbone(kind), labelled(LENGTHS)
    shape = shape_of(dense.model)
    with torch.no_grad():
        for part in anatomy(dense.model):
            for projection in part.attention_in:
                copy_unit(projection, 1, 0, part.heads)
            for projection in part.ffn_in:
                for target, source in ((0, 5), (3, 7), (11, 5)):
                    copy_unit(projection, source, target, part.neurons)
    heads = tuple(range(1, shape.heads[0]))
    neurons = tuple(n for n in range(12) if n not in (0, 3, 11))
    keep = Structure((0, 1, 2), (heads,) * 3, (neurons,) * 3, shape)
    small = pruned_of(dense, keep)
    wanted, other = states(dense, batch), labelled((6, 17), first=50)
    assert (states(small, batch) - wanted).abs().max() > 0.05
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]), damping=1e-7)
    torch.testing.assert_close(states(small, batch), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(states(small, other), states(dense, other), rtol=0, atol=3e-4)


@KINDS
def test_layers_that_lack_something(kind, make_backbone, labelled):
    dense, batch = make_backbone(kind), labelled(LENGTHS)
    shape = shape_of(dense.model)
    heads, neurons = (tuple(range(size[0])) for size in (shape.heads, shape.neurons))
    keep = Structure((0, 1, 2), ((), heads, heads), (neurons, (), neurons), shape)
    small = pruned_of(dense, keep)
    before = (states(small, batch) - states(dense, batch)).square().mean()
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]))
    assert (states(small, batch) - states(dense, batch)).square().mean() < before
    # And once more of a model that lacks them already.
    later = Structure((0, 1, 2), ((), heads[1:], heads), (neurons[3:], (), neurons), keep.sizes)
    smaller = pruned_of(small, later)
    reconstruct(smaller.model, small.model, later, runs_of(smaller, small, [batch]))
    assert states(smaller, batch).isfinite().all()


@KINDS
def test_what_is_below_the_cut_stays(kind, make_backbone, labelled):
    dense, batch = make_backbone(kind), labelled(LENGTHS)
    whole = Structure.whole(dense.model)
    keep = Structure(whole.layers, whole.heads, (whole.neurons[0], whole.neurons[1][::2], whole.neurons[2]), whole.of)
    small = pruned_of(dense, keep)
    plain = copy.deepcopy(small)
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]))
    for place, (one, other) in enumerate(zip(anatomy(small.model), anatomy(plain.model), strict=True)):
        changed = {
            name
            for (name, value), old in zip(one.layer.named_parameters(), other.layer.parameters(), strict=True)
            if not value.equal(old)
        }
        own = {id(p) for p in (*one.attention_out.parameters(), *one.ffn_out.parameters())}
        ffn = {id(p) for p in one.ffn_out.parameters()}
        allowed = (set(), ffn, own)[place]
        assert changed == {name for name, value in one.layer.named_parameters() if id(value) in allowed}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_padding_counts_for_nothing(kind, make_backbone, labelled):
    dense = make_backbone(kind)
    keep, found = uneven(shape_of(dense.model)), []
    for inside, padded in (("flat", False), ("padded", False), ("flat", True)):
        own = make_backbone(kind, layout=inside)
        small = pruned_of(own, keep)
        batches = [labelled((14, 3, 20), padded=padded), labelled((5,), padded=padded, first=3)]
        reconstruct(small.model, own.model, keep, runs_of(small, own, batches))
        found.append(small.state_dict())
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=2e-3)


@KINDS
def test_gated_models_take_the_projections(kind, make_backbone, labelled):
    dense, batch = make_backbone(kind), labelled(LENGTHS)
    shape = shape_of(dense.model)
    keep = uneven(shape)
    keep = Structure(keep.layers, ((), keep.heads[1]), keep.neurons, shape)
    small = pruned_of(dense, keep)
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    gates = Gates(dense.model)
    gates.close(keep)
    gates.attach(dense.model)
    take_projections(dense.model, small.model, keep)
    torch.testing.assert_close(states(dense, batch), states(small, batch), rtol=0, atol=1e-5)
    gates.detach()
    changed = {name for name, value in dense.state_dict().items() if not value.equal(before[name])}
    outputs = {
        id(p) for part in anatomy(dense.model) for p in (*part.attention_out.parameters(), *part.ffn_out.parameters())
    }
    assert changed <= {name for name, value in dense.named_parameters() if id(value) in outputs}
    assert len(changed) >= 3
    # A model that was pruned likewise takes them whole.
    other = pruned_of(make_backbone(kind), keep)
    take_projections(other.model, small.model, Structure.whole(other.model))
    assert states(other, batch).equal(states(small, batch))


def test_neurons_that_are_never_awake(make_backbone, labelled):
    """Zeros say nothing of weights, which then stay; the bias takes what it can."""
    dense, batch = make_backbone("bert"), labelled(LENGTHS)
    part, shape = anatomy(dense.model)[2], shape_of(dense.model)
    with torch.no_grad():
        part.layer.intermediate.dense.weight[:2] = 0
        part.layer.intermediate.dense.bias[:2] = 0
    whole = Structure.whole(shape)
    keep = Structure(whole.layers, whole.heads, (*whole.neurons[:2], (0, 1)), shape)
    small = pruned_of(dense, keep)
    before = anatomy(small.model)[2].ffn_out.weight.clone()
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]))
    assert anatomy(small.model)[2].ffn_out.weight.equal(before)
    assert states(small, batch).isfinite().all()


def test_hooks_are_gone_afterwards(make_backbone, labelled):
    dense, batch = make_backbone("gpt2"), labelled(LENGTHS)
    keep = uneven(shape_of(dense.model))
    small = pruned_of(dense, keep)
    reconstruct(small.model, dense.model, keep, runs_of(small, dense, [batch]))
    for module in (*small.modules(), *dense.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None for p in small.parameters())


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_is_needed(damping, make_backbone):
    dense = make_backbone("bert")
    with pytest.raises(UserError, match="damping must be above 0"):
        reconstruct(dense.model, dense.model, Structure.whole(dense.model), [], damping=damping)
