"""Convolutions against torch's own on each sequence alone; what holds for all such backbones is in test_scratch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, layer_norm, linear, pad, relu

from llm_arch.backbones.convolutional import Convolution, ConvolutionalEncoder, TextCNN
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.types import Batch, LabelSpace, UserError

ROWS = [[5, 6, 7, 8, 2], [9], [5, 9, 3, 3, 2, 11, 4, 12, 13], [3, 4]]


def batch_of(rows: list[list[int]], layout: str = "flat") -> Batch:
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, layout)


def alone(convolution: Convolution, inputs_LE: Tensor, dilation: int, causal: bool) -> Tensor:
    """(L, D): torch's convolution of one sequence, with as much padding as keeps its length."""
    width = len(convolution.offsets)
    outputs, inputs = convolution.linear.out_features, inputs_LE.shape[1]
    weight = convolution.linear.weight.view(outputs, width, inputs).transpose(1, 2)
    bias = convolution.linear.bias
    if causal:
        return conv1d(pad(inputs_LE.T, ((width - 1) * dilation, 0)), weight, bias, dilation=dilation).T
    if width % 2 == 0:  # torch pads an odd number at the end too, and warns that this costs a copy
        reach = (width - 1) * dilation
        return conv1d(pad(inputs_LE.T, (reach // 2, reach - reach // 2)), weight, bias, dilation=dilation).T
    return conv1d(inputs_LE.T, weight, bias, dilation=dilation, padding="same").T


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    width=st.integers(1, 6),
    dilation=st.integers(1, 4),
    causal=st.booleans(),
    layout=st.sampled_from(["flat", "padded"]),
)
def test_convolution_is_that_of_each_sequence_alone(
    lengths: list[int], width: int, dilation: int, causal: bool, layout: str
) -> None:
    convolution = Convolution(3, 4, width, dilation=dilation, causal=causal).double()
    batch = batch_of([[1] * length for length in lengths], layout)
    inputs_TE = torch.randn(len(batch.input_ids), 3, dtype=torch.float64, requires_grad=True)
    out_TD = convolution(inputs_TE, batch)
    assert out_TD.shape == (len(batch.input_ids), 4)
    places = [slice(int(start), int(start + n)) for start, n in zip(batch.starts, batch.lengths, strict=True)]
    found = torch.cat([out_TD[place] for place in places])
    expected = torch.cat([alone(convolution, inputs_TE[place], dilation, causal) for place in places])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    parts = (inputs_TE, *convolution.parameters())
    gradients = torch.autograd.grad(found, parts, upstream), torch.autograd.grad(expected, parts, upstream)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*even kernel.*")
def test_even_widths_lean_as_torch_does() -> None:
    convolution = Convolution(2, 3, 4)
    weight = convolution.linear.weight.view(3, 4, 2).transpose(1, 2)
    inputs_LE = torch.randn(7, 2)
    expected = conv1d(inputs_LE.T[None], weight, convolution.linear.bias, padding="same")[0].T
    torch.testing.assert_close(convolution(inputs_LE, batch_of([[1] * 7])), expected)


def test_bf16_products_are_summed_in_fp32() -> None:
    convolution = Convolution(64, 4, 5)
    inputs_TE = torch.randn(50, 64).bfloat16()
    batch = batch_of([[1] * 50])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = convolution(inputs_TE, batch)
    rounded = Convolution(64, 4, 5)
    rounded.load_state_dict({k: v.bfloat16().float() for k, v in convolution.state_dict().items()})
    assert torch.equal(found, rounded(inputs_TE.float(), batch).bfloat16())


# TextCNN


def test_textcnn_is_parallel_convolutions_with_relu() -> None:
    backbone = TextCNN(vocabulary_size=20, embedding_size=6, filters=4, widths=(1, 2, 5)).eval()
    hidden = backbone(batch_of(ROWS), all_hidden=True)
    assert backbone.hidden_size == 12
    parts = []
    for row in ROWS:
        embedded_LE = backbone.words.weight[row]
        parts.append(relu(torch.cat([alone(c, embedded_LE, 1, False) for c in backbone.convolutions], 1)))
    torch.testing.assert_close(hidden.last_TD, torch.cat(parts), rtol=0, atol=1e-6)
    assert torch.equal(hidden.layers[0], backbone.words.weight[sum(ROWS, [])])


def test_dropout_of_features_is_dropout_of_the_pooled_vector() -> None:
    backbone = TextCNN(vocabulary_size=20, filters=40, dropout=0.5)
    batch = batch_of(ROWS)
    dropped_BD = batch.max(backbone(batch).last_TD)
    pooled_BD = batch.max(backbone.eval()(batch).last_TD)
    kept = dropped_BD > 0
    torch.testing.assert_close(dropped_BD[kept], 2 * pooled_BD[kept])
    assert float((pooled_BD > 0)[~kept].float().mean()) > 0.3
    assert 0.4 < float(kept[pooled_BD > 0].float().mean()) < 0.6


def test_textcnn_under_a_head_is_kims_network() -> None:
    backbone = TextCNN(vocabulary_size=20, embedding_size=6, filters=4, widths=(3, 5)).eval()
    head = SequenceClassification(8, LabelSpace(("off", "on"))).eval()
    head.bind(backbone)
    found = head(backbone(batch_of(ROWS)), batch_of(ROWS))
    for row, logits in zip(ROWS, found, strict=True):
        features = [alone(c, backbone.words.weight[row], 1, False).relu().amax(0) for c in backbone.convolutions]
        torch.testing.assert_close(logits, linear(torch.cat(features), head.classify.weight, head.classify.bias))


# The residual stack


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("embedding_size", [8, 5])
def test_encoder_is_residual_convolutions(causal: bool, embedding_size: int) -> None:
    backbone = ConvolutionalEncoder(
        vocabulary_size=20,
        embedding_size=embedding_size,
        hidden_size=8,
        num_layers=3,
        width=3,
        dilation_growth=2,
        causal=causal,
    ).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.5)
    hidden = backbone(batch_of(ROWS), all_hidden=True)
    found = [layer_TD.split([len(row) for row in ROWS]) for layer_TD in hidden.layers]
    for i, row in enumerate(ROWS):
        x = backbone.words.weight[row]
        if embedding_size != 8:
            x = linear(x, backbone.project.weight, backbone.project.bias)
        torch.testing.assert_close(found[0][i], x, rtol=0, atol=1e-5)
        for number, block in enumerate(backbone.blocks):
            normed = layer_norm(x, (8,), block.norm.weight, block.norm.bias)
            x = x + gelu(alone(block.convolution, normed, 2**number, causal))
            if number < 2:
                torch.testing.assert_close(found[number + 1][i], x, rtol=0, atol=1e-5)
        last = layer_norm(x, (8,), backbone.norm.weight, backbone.norm.bias)
        torch.testing.assert_close(found[-1][i], last, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "back", "ahead"),
    [
        ({}, 3, 3),
        ({"dilation_growth": 2}, 7, 7),
        ({"dilation_growth": 2, "causal": True}, 14, 0),
        ({"width": 2}, 0, 3),
        ({"width": 1}, 0, 0),
    ],
)
def test_how_far_a_state_sees(options: dict[str, Any], back: int, ahead: int) -> None:
    backbone = ConvolutionalEncoder(vocabulary_size=20, hidden_size=8, num_layers=3, **options).eval()
    batch = batch_of([[3] * 31, [4] * 31])
    embedded_TE = backbone.embeddings(batch.input_ids).detach().requires_grad_()
    (gradient_TE,) = torch.autograd.grad(
        backbone(batch, inputs_embeds=embedded_TE).last_TD[15].pow(3).sum(), embedded_TE
    )
    seen = gradient_TE.abs().sum(1).nonzero()[:, 0].tolist()
    assert seen == list(range(15 - back, 15 + ahead + 1))


def test_layers_do_not_share_weights() -> None:
    layers = ConvolutionalEncoder(vocabulary_size=20, num_layers=3).layers
    assert len(layers) == 3
    assert all(not torch.equal(a.convolution.linear.weight, b.convolution.linear.weight) for a, b in pairwise(layers))


# Mistakes


def test_wrong_sizes() -> None:
    with pytest.raises(UserError, match="widths must name at least one width"):
        TextCNN(vocabulary_size=20, widths=())
    with pytest.raises(UserError, match="widths must be at least 1, got 0"):
        TextCNN(vocabulary_size=20, widths=(3, 0))
    with pytest.raises(UserError, match="filters must be at least 1, got 0"):
        TextCNN(vocabulary_size=20, filters=0)
    for name in ("hidden_size", "num_layers", "width", "dilation_growth"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            ConvolutionalEncoder(**{"vocabulary_size": 20, name: 0})
