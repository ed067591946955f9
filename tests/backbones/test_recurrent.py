"""LSTM and GRU against torch's own on each sequence alone; what holds for all such backbones is in test_scratch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_arch.backbones.recurrent import RecurrentEncoder, _Packing
from llm_arch.data.collate import make_batch
from llm_arch.types import Batch, UserError

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=6)
LAYOUTS = st.sampled_from(["flat", "padded"])


def batch_of(rows: list[list[int]], layout: str = "flat") -> Batch:
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, layout)


def rows_of(lengths: list[int]) -> list[list[int]]:
    return [[(7 * i + 3 * j) % 20 for j in range(length)] for i, length in enumerate(lengths)]


def real(states_TD: Tensor, batch: Batch) -> Tensor:
    return states_TD if batch.valid is None else states_TD[batch.valid]


@given(lengths=SHAPES, layout=LAYOUTS)
def test_packing_is_that_of_torch(lengths: list[int], layout: str) -> None:
    batch = batch_of(rows_of(lengths), layout)
    sequences = [batch.input_ids[start : start + n] for start, n in zip(batch.starts, batch.lengths, strict=True)]
    expected = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    packing = _Packing.of(batch)
    assert torch.equal(packing.counts_P, expected.batch_sizes)
    assert torch.equal(batch.input_ids[packing.token_N], expected.data)
    back = torch.cat([packing.token_N, torch.tensor([-1])])[packing.place_T]
    everywhere = torch.arange(len(batch.input_ids))
    assert torch.equal(back, everywhere if batch.valid is None else everywhere.where(batch.valid, -1))


@settings(max_examples=30, deadline=None)
@given(
    lengths=SHAPES,
    layout=LAYOUTS,
    cell=st.sampled_from(["lstm", "gru"]),
    bidirectional=st.booleans(),
    num_layers=st.integers(1, 3),
)
def test_states_are_those_of_each_sequence_alone(
    lengths: list[int], layout: str, cell: str, bidirectional: bool, num_layers: int
) -> None:
    backbone = RecurrentEncoder(
        vocabulary_size=20,
        embedding_size=3,
        hidden_size=4,
        num_layers=num_layers,
        cell=cell,  # type: ignore[arg-type]
        bidirectional=bidirectional,
        dropout=0.0,
    ).double()
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
    whole = kind(3, 2 if bidirectional else 4, num_layers, batch_first=True, bidirectional=bidirectional).double()
    names = [
        name.replace("_l0", f"_l{i}")
        for i, layer in enumerate(backbone.stack)
        for name, _ in layer.rnn.named_parameters()
    ]
    values = [parameter for layer in backbone.stack for parameter in layer.rnn.parameters()]
    rows = rows_of(lengths)
    batch = batch_of(rows, layout)
    hidden = backbone(batch, all_hidden=True)
    found = real(hidden.last_TD, batch)
    weights = dict(zip(names, values, strict=True))
    assert weights.keys() == dict(whole.named_parameters()).keys()
    expected = torch.cat(
        [torch.func.functional_call(whole, weights, (backbone.words.weight[row][None],))[0][0] for row in rows]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    parts = (backbone.words.weight, *values)
    gradients = [torch.autograd.grad(states, parts, upstream, retain_graph=True) for states in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    assert [layer.shape[1] for layer in hidden.layers] == [3, *[4] * num_layers]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_each_direction_sees_its_side(cell: str) -> None:
    backbone = RecurrentEncoder(vocabulary_size=20, hidden_size=8, cell=cell).eval()  # type: ignore[arg-type]
    batch = batch_of([[3, 4, 5, 6, 7], [8, 9]])
    embedded_TE = backbone.embeddings(batch.input_ids).detach().requires_grad_()
    state_D = backbone(batch, inputs_embeds=embedded_TE).last_TD[2]
    for part, seen in ((state_D[:4], [0, 1, 2]), (state_D[4:], [2, 3, 4])):
        (gradient_TE,) = torch.autograd.grad(part.sum(), embedded_TE, retain_graph=True)
        assert gradient_TE.abs().sum(1).nonzero()[:, 0].tolist() == seen


def test_padding_has_states_of_zero() -> None:
    backbone = RecurrentEncoder(vocabulary_size=20, hidden_size=8, num_layers=2).eval()
    batch = batch_of([[3, 4, 5], [6]], "padded")
    assert batch.valid is not None
    hidden = backbone(batch, all_hidden=True)
    for layer_TD in hidden.layers[1:]:
        assert layer_TD[~batch.valid].abs().max() == 0
        assert layer_TD[batch.valid].abs().min() > 0


def test_sizes_go_to_both_directions_together() -> None:
    both = RecurrentEncoder(vocabulary_size=20, hidden_size=8)
    one = RecurrentEncoder(vocabulary_size=20, hidden_size=8, bidirectional=False)
    assert both.embeddings.weight.shape == one.embeddings.weight.shape == (20, 8)
    assert both.hidden_size == one.hidden_size == 8


def test_wrong_arguments() -> None:
    for name in ("hidden_size", "num_layers"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            RecurrentEncoder(**{"vocabulary_size": 20, name: 0})
    with pytest.raises(UserError, match="hidden_size must be even, a half for each direction, got 7"):
        RecurrentEncoder(vocabulary_size=20, hidden_size=7)
    assert RecurrentEncoder(vocabulary_size=20, hidden_size=7, bidirectional=False).hidden_size == 7
    with pytest.raises(UserError, match="cell must be lstm or gru, got 'rnn'"):
        RecurrentEncoder(vocabulary_size=20, cell="rnn")  # type: ignore[arg-type]
