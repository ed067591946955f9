"""Physical pruning of models of transformers: which entries stay, and what the configuration says afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from transformers import AutoConfig, AutoModel

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.structure import Shape, Structure, shape_of
from llm_arch.compression.surgery import cut_optimizer, dense_config, prune, shape_like
from llm_arch.types import UserError

COMMON: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 6,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "gpt2": {"n_inner": 6},
    "modernbert": {
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "llama": {"num_key_value_heads": 2},
}


def built(kind: str) -> Any:
    return AutoModel.from_config(AutoConfig.for_model(kind, **COMMON, **KINDS[kind])).eval()


# In the first layer, with heads of 2 columns: which rows of the inputs stay when units 1 and (of 4) 2 are kept, and
# neurons 0 and 5; of grouped attention unit 1 of 2 is a key with its two queries.
ROWS: dict[str, dict[str, list[int]]] = {
    "bert": {"query": [2, 3, 4, 5], "key": [2, 3, 4, 5], "value": [2, 3, 4, 5], "intermediate.dense": [0, 5]},
    "gpt2": {"c_attn": [2, 3, 4, 5, 10, 11, 12, 13, 18, 19, 20, 21], "c_fc": [0, 5]},
    "modernbert": {"Wqkv": [2, 3, 4, 5, 10, 11, 12, 13, 18, 19, 20, 21], "Wi": [0, 5, 6, 11]},
    "llama": {"q_proj": [4, 5, 6, 7], "k_proj": [2, 3], "v_proj": [2, 3], "gate_proj": [0, 5], "up_proj": [0, 5]},
}
COLUMNS = {"bert": [2, 3, 4, 5], "gpt2": [2, 3, 4, 5], "modernbert": [2, 3, 4, 5], "llama": [4, 5, 6, 7]}


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_these_entries_in_the_same_parameters(kind):
    model = built(kind)
    old = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    of = shape_of(model)
    heads = (1,) if kind == "llama" else (1, 2)
    whole = tuple(range(of.heads[0]))
    keep = Structure((0, 2), (heads, whole), ((0, 5), tuple(range(6))), of)
    cuts = prune(model, keep)
    first = anatomy(model)[0]
    assert shape_of(model) == keep.sizes
    for name, rows in ROWS[kind].items():
        full = next(n for n, m in model.named_modules() if m in set(first.layer.modules()) and n.endswith(name))
        linear: Any = model.get_submodule(full)
        parameter, before = old[f"{full}.weight"]
        assert linear.weight is parameter
        expected = before[rows] if isinstance(linear, nn.Linear) else before[:, rows]
        assert parameter.equal(expected)
        if linear.bias is not None:
            assert linear.bias.equal(old[f"{full}.bias"][1][rows])
        assert (linear.out_features if isinstance(linear, nn.Linear) else linear.nf) == len(rows)
    for linear, columns in ((first.attention_out, COLUMNS[kind]), (first.ffn_out, [0, 5])):
        before = next(b for p, b in old.values() if p is linear.weight)
        expected = before[:, columns] if isinstance(linear, nn.Linear) else before[columns]
        assert linear.weight.equal(expected)
    for cut in cuts:
        before = next(b for p, b in old.values() if p is cut.parameter)
        assert cut.size == before.shape[cut.dim]
        assert cut.parameter.equal(before.index_select(cut.dim, cut.index))
    touched = {id(cut.parameter) for cut in cuts}
    assert all(p.equal(b) for p, b in old.values() if id(p) not in touched)


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_says_what_it_can(kind):
    model = built(kind)
    of = shape_of(model)
    whole = tuple(range(of.heads[0]))
    prune(model, Structure((0, 2), (whole,) * 2, ((1, 2),) * 2, of))
    assert model.config.num_hidden_layers == 2
    width = model.config.n_inner if kind == "gpt2" else model.config.intermediate_size
    assert width == 2
    if kind == "modernbert":
        assert model.config.layer_types == ["full_attention", "full_attention"]
    numbers = [m.layer_idx for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    assert set(numbers) <= {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_dense_model_takes_the_sizes(kind):
    model = built(kind)
    of = shape_of(model)
    keep = Structure((1, 2), ((), (1,)), ((2, 3), ()), of)
    prune(model, keep)
    again = AutoModel.from_config(dense_config(model.config, keep)).eval()
    assert shape_of(again) == of
    shape_like(again, keep)
    assert again.config.to_dict() == model.config.to_dict()
    again.load_state_dict(model.state_dict(), strict=True)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert again(ids).last_hidden_state.equal(model(ids).last_hidden_state)
    assert all(parameter.numel() for parameter in again.parameters())


def test_gradients_are_cut_too():
    model = built("bert")
    model(torch.tensor([[3, 4]])).last_hidden_state.sum().backward()
    out: Any = anatomy(model)[0].ffn_out
    before = out.weight.grad.clone()
    of = shape_of(model)
    whole = tuple(range(4))
    prune(model, Structure((0,), (whole,), ((2, 4),), of))
    assert out.weight.grad.equal(before[:, [2, 4]])
    assert out.weight.grad.shape == out.weight.shape


def test_optimizer_with_other_states_is_refused():
    model = built("bert")
    optimizer = AdamW(model.parameters())
    model(torch.tensor([[3, 4]])).last_hidden_state.sum().backward()
    optimizer.step()
    of = shape_of(model)
    cuts = prune(model, Structure((0,), ((0, 1),), ((2, 4),), of))
    optimizer.state[cuts[0].parameter]["odd"] = torch.zeros(3)
    with pytest.raises(UserError, match="AdamW keeps 'odd' of shape"):
        cut_optimizer(optimizer, cuts, [])


def test_refuses_what_does_not_fit():
    model = built("bert")
    with pytest.raises(UserError, match="2 layers with 4 heads and 6 neurons, but this one has 3 layers"):
        prune(model, Structure.whole(Shape(2, (4, 4), (6, 6))))
    of = shape_of(model)
    anatomy(model)[0].layer.output.dense = nn.Sequential()
    with pytest.raises(UserError, match="no kind"):
        prune(model, Structure.whole(of))
    model = built("bert")
    layer: Any = anatomy(model)[0].layer
    layer.output.dense = nn.Bilinear(6, 6, 8)
    layer.output.dense.in_features = 6
    with pytest.raises(UserError, match="Bilinear stands where a linear layer is to be pruned"):
        prune(model, Structure.whole(of))
    keep = Structure.whole(Shape(3, (4,) * 3, (6, 6, 7)))
    with pytest.raises(UserError, match="same number of neurons before pruning"):
        dense_config(built("bert").config, keep)
    with pytest.raises(UserError, match=r"config.json says 3 layers, but 1 were kept"):
        dense_config(built("bert").config, Structure((0,), ((0,),), ((),), of))
