"""Which layers are found and pruned, in every kind of backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.compression.linear_layers import kind_of, matrix, stacked_linear_layers
from llm_arch.compression.prunable import prunable_layers
from llm_arch.types import UserError

KINDS = {
    "tiny:bert": 6,
    "tiny:roberta": 6,
    "tiny:gpt2": 4,
    "tiny:modernbert": 4,
    "tiny:llama": 7,
}


@pytest.mark.parametrize(("name", "count"), KINDS.items())
def test_linear_layers_of(name: str, count: int) -> None:
    backbone = backbone_from(name)
    layers, tied = prunable_layers(backbone, backbone, None)
    assert len(layers) == count * len(backbone.layers)
    assert len({kind_of(name) for name in layers}) == count
    assert tied == []
    stacked = {id(p) for layer in backbone.layers for p in layer.parameters() if p.dim() == 2}
    assert {id(layer.weight) for layer in layers.values()} == stacked


def test_a_conv1d_has_its_inputs_in_rows() -> None:
    layer = Conv1D(5, 3)
    x = torch.randn(7, 3)
    view = matrix(layer)
    assert view.shape == (5, 3)
    assert torch.allclose(x @ view.T + layer.bias, layer(x), atol=1e-6)
    view.zero_()
    assert not layer.weight.any()
    assert matrix(nn.Linear(3, 5)).shape == (5, 3)


def test_patterns() -> None:
    backbone = backbone_from("tiny:bert")
    layers, _ = prunable_layers(backbone, backbone, ["self.query", "inter*.dense"])
    assert {kind_of(name) for name in layers} == {"attention.self.query", "intermediate.dense"}
    with pytest.raises(UserError, match=r"^modules: 'gate' fits no linear layer; there are: attention.self.query, .*"):
        prunable_layers(backbone, backbone, ["gate"])
    with pytest.raises(UserError, match="^modules is empty; there are: attention"):
        prunable_layers(backbone, backbone, [])


def test_backbones_without_transformers() -> None:
    cnn: Any = TextCNN(vocabulary_size=50, embedding_size=8, filters=4)
    assert {kind_of(name) for name in prunable_layers(cnn, cnn, None)[0]} == {"linear"}
    lstm: Any = RecurrentEncoder(vocabulary_size=50, embedding_size=8)
    with pytest.raises(UserError, match=r"^RecurrentEncoder has no linear layer to prune; the backbone has none"):
        prunable_layers(lstm, lstm, None)


class Sharing(nn.Module):
    """A stack whose first weight is the embeddings', and whose last two are one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)
        self.stack = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.stack[0].weight = self.table.weight
        self.stack[2].weight = self.stack[1].weight


def test_shared_weights() -> None:
    model = Sharing()
    assert list(stacked_linear_layers(model)) == ["stack.0", "stack.1", "stack.2"]
    layers, tied = prunable_layers(model, model, None)
    assert (list(layers), tied) == (["stack.1"], ["stack.0"])
    with pytest.raises(UserError, match=r"nothing to prune: stack\.0 shares its weight with embeddings"):
        prunable_layers(model, model, ["0"])


def test_what_is_quantized_or_adapted() -> None:
    model = Sharing()
    model.stack[1].weight = nn.Parameter(torch.ones(6, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"^stack\.1 is quantized already; prune first, then quantize$"):
        prunable_layers(model, model, None)
    model = Sharing()
    model.stack[1].register_parameter("lora_A", nn.Parameter(torch.ones(1)))
    with pytest.raises(UserError, match="adapters are added to the weights"):
        prunable_layers(model, model, None)
