"""Fillers change nothing but how long a batch takes."""

import copy

import pytest
import torch
from torch import Tensor

from llm_arch import fillers
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.attention_relations import attending_layer, queries_keys_values, recorded
from llm_arch.compression.input_norms import InputNorms
from llm_arch.compression.positions import positions_of
from llm_arch.types import Batch

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99}
CONFIGS = {
    "bert": SIZES | {"model_type": "bert", "intermediate_size": 48},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99},
    "llama": SIZES | {"model_type": "llama", "intermediate_size": 48, "num_key_value_heads": 1},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def batch(*lengths: int) -> Batch:
    """Sequences of these lengths with random tokens."""
    lengths_B = torch.tensor(lengths)
    return Batch(
        input_ids=torch.randint(5, 99, (sum(lengths),)),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        segments=torch.arange(len(lengths)).repeat_interleave(lengths_B),
        starts=lengths_B.cumsum(0) - lengths_B,
        lengths=lengths_B,
        index=torch.arange(len(lengths)),
    )


def grown(model: Pretrained, one: Batch) -> tuple[Tensor, list[Tensor]]:
    """The states under autocast, and the gradients of their weighted sum."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        states_TD = model(one).last_TD
    weights = torch.randn(states_TD.shape, generator=torch.Generator().manual_seed(1))
    (states_TD.float() * weights).sum().backward()
    return states_TD.detach().float(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("lengths", [(3, 9, 5), (64,), (1,), (40, 25)])
def test_states_and_gradients_are_those_without(
    kind: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As exactly as products of half precision allow, whose kernels differ from shape to shape."""
    model, one = Pretrained(config=CONFIGS[kind]).eval(), batch(*lengths)
    seen: list[int] = []
    model.model.register_forward_hook(lambda m, args, out: seen.append(out.last_hidden_state.shape[1]))
    states, gradients = grown(model, one)
    monkeypatch.setattr(fillers, "_STEP", 1)
    plain, without = grown(model, one)
    assert seen == [-(-sum(lengths) // 64) * 64, sum(lengths)]
    assert states.shape == plain.shape == (sum(lengths), 32)
    torch.testing.assert_close(states, plain, atol=0.03, rtol=0.03)
    assert len(gradients) == len(without)
    for got, expected in zip(gradients, without, strict=True):
        torch.testing.assert_close(got, expected, atol=0.02 * float(expected.abs().max()) + 1e-5, rtol=0.05)


def test_only_a_cpu_under_autocast_gets_them() -> None:
    """Elsewhere nothing is compiled for a shape."""
    tokens = torch.arange(65)
    assert fillers.count_of(tokens) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert fillers.count_of(tokens) == 63
        assert fillers.count_of(tokens[:64]) == 0
        assert fillers.count_of(tokens.to("meta")) == 0


def test_all_layers_are_cut_to_the_tokens() -> None:
    """As is what is looked at within a layer."""
    model, one = Pretrained(config=CONFIGS["bert"]), batch(3, 9, 5)
    part = attending_layer(model, -1)
    with torch.autocast("cpu", torch.bfloat16), recorded(part) as outputs:
        hidden = model(one, all_hidden=True)
        found = queries_keys_values(outputs, one)
    assert outputs[0].shape == (1, 64, 32)
    assert [q.shape for q in found] == [(17, 32)] * 3
    assert hidden.layers is not None
    assert all(layer.shape == (17, 32) for layer in hidden.layers)
    torch.testing.assert_close(found[0].float(), outputs[0][0, :17].float())


def test_norms_and_ranges_leave_them_out() -> None:
    """What inputs of a layer are like is told by the tokens of the batch alone."""
    one = batch(3, 9, 5)
    states = torch.randn(1, 64, 8)
    norms = InputNorms()
    layer = torch.nn.Linear(8, 8)
    norms.watch({"layer": layer})
    norms.see(one)
    with torch.autocast("cpu", torch.bfloat16):
        layer(states)
        where = positions_of(states.shape, one)
    norms.gather(lambda total: total)
    torch.testing.assert_close(norms.norms("layer", layer.weight), states[0, :17].norm(dim=0))
    assert where.real_N is not None
    assert where.real_N.tolist() == [True] * 17 + [False] * 47
    assert where.group_N[:17].tolist() == one.segments.tolist()


def test_fillers_repeat_the_first_token() -> None:
    """So that a range over all tokens does not change, even without knowing of them."""
    model = copy.deepcopy(Pretrained(config=CONFIGS["bert"])).eval()
    outputs: list[Tensor] = []
    model.layers[-1].register_forward_hook(
        lambda m, args, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(batch(3, 9, 5))
    states_TD = outputs[0].view(-1, 32)
    assert len(states_TD) == 64
    torch.testing.assert_close(states_TD[17:], states_TD[:1].expand(47, -1))
