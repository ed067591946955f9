"""Gates: at one they change nothing, between they scale, and they carry gradients to whoever sets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.gates import Gates
from llm_arch.compression.structure import Structure
from llm_arch.types import UserError

COMMON: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
KINDS = {
    "bert": {},
    "gpt2": {"n_inner": 12},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "llama": {"num_key_value_heads": 2},
}
IDS = torch.tensor([[4, 9, 3, 22, 7], [1, 5, 5, 8, 2]])


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    config = AutoConfig.for_model(request.param, **COMMON, **KINDS[request.param])
    built = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return built


def states(model: Any) -> Tensor:
    found: Tensor = model(IDS).last_hidden_state
    return found


def test_ones_change_nothing_and_detaching_leaves_nothing(model):
    gates = Gates(model)
    assert not gates.attached
    with torch.no_grad():
        plain = states(model)
        gates.attach(model)
        assert gates.attached
        assert states(model).equal(plain)
        gates.neurons[1] = torch.rand(12)
        assert not states(model).equal(plain)
        gates.detach()
        assert states(model).equal(plain)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_scale_what_goes_into_the_projections(model):
    """Against weights that are scaled in place of the states."""
    gates, parts = Gates(model), anatomy(model)
    columns = parts[1].head_columns
    head, neuron, layer = torch.rand(parts[1].heads), torch.rand(12), 0.3
    gates.heads[1], gates.neurons[1] = head, neuron
    gates.attach(model)
    with torch.no_grad():
        gated = states(model)
        gates.detach()
        for linear, factors in ((parts[1].attention_out, head.repeat_interleave(columns)), (parts[1].ffn_out, neuron)):
            linear.weight.mul_(factors if isinstance(linear, nn.Linear) else factors[:, None])
        torch.testing.assert_close(states(model), gated, rtol=0, atol=1e-5)
        gates = Gates(model)
        gates.layers[0] = layer
        gates.attach(model)
        all_states = model(IDS, output_hidden_states=True).hidden_states
        gates.detach()
        plain = model(IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(all_states[1], layer * plain[1] + (1 - layer) * plain[0], rtol=0, atol=1e-6)


def test_gradients_reach_given_values(model):
    gates = Gates(model)
    gates.attach(model)
    given = {
        name: [torch.ones_like(gate).requires_grad_() for gate in getattr(gates, name)] for name in ("heads", "neurons")
    }
    layers = torch.ones(3, requires_grad=True)
    gates.set_values(**given, layers=layers)
    weight = torch.randn(IDS.numel(), 16).view(*IDS.shape, 16)
    (states(model) * weight).sum().backward()
    leaves = [*given["heads"], *given["neurons"], layers]
    gates.detach()
    # By finite differences, one entry each, in double precision where transformers lets it.
    model.double()
    for leaf in leaves[1::3]:
        where = leaf.numel() - 1
        values = []
        for step in (5e-3, -5e-3):
            double = {n: [g.detach().double() for g in given[n]] for n in given}
            double_layers = layers.detach().double()
            for name in double:
                for i, one in enumerate(given[name]):
                    if one is leaf:
                        double[name][i][where] += step
            if leaf is layers:
                double_layers[where] += step
            gates.set_values(**double, layers=double_layers)
            gates.attach(model)
            with torch.no_grad():
                values.append((states(model) * weight).sum())
            gates.detach()
        slope = (values[0] - values[1]) / 1e-2
        torch.testing.assert_close(leaf.grad[where].double(), slope, rtol=1e-2, atol=1e-2)
    gates.set_values()
    assert gates.values("layers") is gates.layers


def test_structure_is_what_zeros_leave(model):
    gates = Gates(model)
    whole = Structure.whole(model)
    assert gates.structure(whole).is_whole
    heads = len(gates.heads[0])
    gates.heads[0] = torch.tensor([0.0, *[0.4] * (heads - 1)])
    gates.neurons[1] = torch.zeros(12)
    gates.layers[2] = 0.0
    found = gates.structure(whole)
    assert found.layers == (0, 1)
    assert found.heads == (tuple(range(1, heads)), tuple(range(heads)))
    assert found.neurons == (tuple(range(12)), ())
    gates.layers.zero_()
    with pytest.raises(UserError, match="nothing would be left"):
        gates.structure(whole)


def test_are_saved_and_checked(model):
    gates, other = Gates(model), Gates(model)
    gates.heads[-1] = torch.full_like(gates.heads[2], 0.5)
    other.load_state_dict(gates.state_dict())
    assert [h.tolist() for h in other.heads] == [h.tolist() for h in gates.heads]
    assert all(value.dtype == torch.float32 for value in gates.state_dict().values())
    assert not list(gates.parameters())
    with pytest.raises(IndexError):
        gates.heads[3]
    with pytest.raises(UserError, match="gates of neurons need 12, 12, 12 factors"):
        gates.set_values(neurons=[torch.ones(12)] * 2)
    with pytest.raises(UserError, match="gates of layers need 3"):
        gates.set_values(layers=torch.ones(2))
    small = AutoModel.from_config(AutoConfig.for_model("bert", **{**COMMON, "intermediate_size": 8}))
    with pytest.raises(UserError, match="another shape"):
        gates.attach(small)
