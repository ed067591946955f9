"""Parts are found by what layers are called, with sizes from the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from llm_arch.compression.anatomy import OnlyBias, anatomy, sizes
from llm_arch.compression.structure import Shape, shape_of
from llm_arch.types import UserError

COMMON: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
# What there is beyond COMMON, the units of attention, and the columns of each.
KNOWN: dict[str, tuple[dict[str, Any], int, int]] = {
    "bert": ({}, 4, 4),
    "roberta": ({}, 4, 4),
    "xlm-roberta": ({}, 4, 4),
    "electra": ({"embedding_size": 8}, 4, 4),
    "gpt2": ({"n_inner": 12}, 4, 4),
    "modernbert": ({"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}, 4, 4),
    "llama": (GROUPED, 2, 8),
    "mistral": (GROUPED, 2, 8),
    "qwen2": (GROUPED, 2, 8),
    "qwen3": (GROUPED | {"head_dim": 6}, 2, 12),
    "gemma": (GROUPED | {"head_dim": 8}, 2, 16),
}


def built(kind: str, **more: Any) -> Any:
    values = {**COMMON, **KNOWN.get(kind, ({},))[0], **more}
    return AutoModel.from_config(AutoConfig.for_model(kind, **values))


@pytest.mark.parametrize("kind", KNOWN)
def test_finds_the_parts(kind):
    model = built(kind)
    parts = anatomy(model)
    _, heads, columns = KNOWN[kind]
    assert shape_of(model) == Shape(2, (heads,) * 2, (12,) * 2)
    names = {id(module): name for name, module in model.named_modules()}
    for number, part in enumerate(parts):
        assert f".{number}" in f".{names[id(part.layer)]}"
        assert part.head_columns == columns
        assert sizes(part.attention_out) == (heads * columns, 16)
        assert sizes(part.ffn_out) == (12, 16)
        inside = {id(module) for module in part.layer.modules()}
        assert {id(part.attention_out), id(part.ffn_out), id(part.attention)} <= inside
        inner = [one.linear for one in (*part.attention_in, *part.ffn_in)]
        weights = sum(one.weight.numel() for one in (*inner, part.attention_out, part.ffn_out))
        assert weights == sum(p.numel() for p in part.layer.parameters() if p.ndim == 2)


def test_takes_a_model_with_a_head():
    config = AutoConfig.for_model("bert", **COMMON)
    assert len(anatomy(AutoModelForSequenceClassification.from_config(config))) == 2


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("albert", {"embedding_size": 8}),  # whose layers are one
        ("olmo2", {}),  # whose norms go over all heads
        ("mixtral", {"num_local_experts": 2}),
    ],
)
def test_says_which_kinds_it_knows(kind, more):
    with pytest.raises(UserError, match=f"{kind}: its layers are of no kind .* GPT-2; ModernBERT; Llama"):
        anatomy(built(kind, **more))


def test_any_module_may_be_asked():
    with pytest.raises(UserError, match="Linear: its layers"):
        anatomy(nn.Linear(2, 2))
    assert torch.is_grad_enabled()


def test_what_is_left_of_a_projection_asks_for_no_gradient_in_inference():
    """Torch's counter of operations, for one, follows what does."""
    bias = nn.Parameter(torch.randn(4))
    left = OnlyBias(bias, 4, bias)
    with torch.inference_mode():
        found = left(torch.zeros(2, 3, 0))
    assert not found.requires_grad
    assert found.equal(bias.detach().expand(2, 3, 4))
    left(torch.zeros(2, 3, 0)).sum().backward()
    assert bias.grad is not None
    assert bias.grad.equal(torch.full((4,), 6.0))
