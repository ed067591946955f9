"""The latency table: what it adds up to, how it is kept, and that it tells small stacks from large ones."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression import latency, stacks
from llm_arch.compression.latency import LatencyTable, share_besides
from llm_arch.compression.structure import Structure
from llm_arch.compression.surgery import prune
from llm_arch.types import UserError

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}
BERT = {"model_type": "bert", "max_position_embeddings": 24, **SHAPE}
KINDS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 64, "vocab_size": 40},
    "modernbert": {"model_type": "modernbert", "pad_token_id": 0, **SHAPE},
    "llama": {"model_type": "llama", "num_key_value_heads": 2, **SHAPE},
}
TABLE = LatencyTable(
    lengths=(10, 20),
    heads=(0, 2, 4),
    neurons=(0, 8),
    of_heads=((0.0, 2.0, 3.0), (0.0, 4.0, 6.0)),
    of_neurons=((0.0, 8.0), (0.0, 16.0)),
    of_layer=(1.0, 3.0),
    outside=(5.0, 7.0),
    machine={"device": "abacus"},
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of one call each: enough where only their order or their being there counts."""
    monkeypatch.setattr(stacks, "FEWEST_TURNS", 1)
    monkeypatch.setattr(stacks, "CALLS", 1)


def test_adds_up() -> None:
    assert TABLE.seconds([(4, 8)], [10]) == 5 + 1 + 3 + 8
    assert TABLE.seconds([(1, 3), None, (3, 0)], [10]) == 5 + (1 + 1 + 3) + (1 + 2.5 + 0)
    assert TABLE.seconds([(4, 8)], [10], fixed=2.5) == 5 + 1 + 3 + 8 + 2.5
    prices = TABLE.prices([10])
    assert (len(prices.heads), len(prices.neurons)) == (5, 9)
    assert prices.heads[0] == prices.neurons[0] == 0


def test_between_lengths() -> None:
    whole = [(4, 8)] * 2
    at = {length: TABLE.seconds(whole, [length]) for length in (3, 10, 15, 20, 40)}
    assert at[3] == at[10]  # what is shorter than the shortest
    assert at[15] == pytest.approx((at[10] + at[20]) / 2)
    assert at[40] == pytest.approx(at[10] + 3 * (at[20] - at[10]))  # beyond the longest
    rows = [3, 10, 15, 15, 20, 40]
    assert TABLE.seconds(whole, rows) == pytest.approx(np.mean([at[row] for row in rows]))
    assert TABLE.seconds(whole, np.array(rows)) == TABLE.seconds(whole, rows)
    one = replace(
        TABLE, lengths=(10,), **{n: getattr(TABLE, n)[:1] for n in ("of_heads", "of_neurons", "of_layer", "outside")}
    )
    assert one.seconds(whole, [3, 99]) == at[10]


def test_the_fit_finds_what_costs_add_up_from() -> None:
    heads, neurons = (0, 1, 3, 4), (0, 4, 16, 32, 64)
    variants = latency._variants(heads, neurons)
    assert (heads[-1], neurons[-1]) not in variants
    rng = np.random.default_rng(0)
    of_heads = dict(zip(heads, np.cumsum([0, *rng.random(3)]), strict=True))
    of_neurons = dict(zip(neurons, np.cumsum([0, *rng.random(4)]), strict=True))
    cost = {(h, n): 0.3 + of_heads[h] + of_neurons[n] for h in heads for n in neurons}
    found = latency._fit(heads, neurons, variants, [cost[v] for v in variants], cost[4, 64])
    expected = [0.3, *np.diff(list(of_heads.values())), *np.diff(list(of_neurons.values()))]
    assert found == pytest.approx(expected, rel=1e-4)
    noisy = [cost[v] * rng.uniform(0.8, 1.2) for v in variants]
    assert min(latency._fit(heads, neurons, variants, noisy, cost[4, 64])) >= 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_measured(kind: str) -> None:
    backbone = Pretrained(config=KINDS[kind]).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    table = LatencyTable.measure(backbone, [4, 16, 80], seconds=0.0)
    most = backbone.max_length or 80
    assert table.lengths == tuple(length for length in (4, 16, 80) if length <= most)
    heads = 2 if kind == "llama" else 4
    assert (table.heads[0], table.heads[-1], table.neurons[0], table.neurons[-1]) == (0, heads, 0, 64)
    for steps in (*table.of_heads, *table.of_neurons):
        assert steps[0] == 0
        assert list(steps) == sorted(steps)
    assert all(0 < one < 1 for one in table.outside)
    whole = table.seconds([(heads, 64)] * 3, [16])
    assert 0 < table.seconds([(heads, 64)], [16]) < whole < 1
    # The backbone is as it was.
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_larger_takes_longer() -> None:
    """A model large enough for its products to count, against two of its kind that are really pruned."""
    config = {
        **BERT,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "intermediate_size": 2048,
        "max_position_embeddings": 80,
    }
    backbone = Pretrained(config=config).eval()
    table = LatencyTable.measure(backbone, [64], seconds=0.2)
    small = Pretrained(config=config).eval()
    whole = Structure.whole(small.model)
    prune(small.model, replace(whole, neurons=(tuple(range(128)),) * 3))
    batch = stacks.batch_of(64, 40)

    def seconds(model: Pretrained) -> float:
        found = []
        with torch.inference_mode():
            for _ in range(12):
                start = time.process_time()
                model(batch)
                found.append(time.process_time() - start)
        return min(found)

    measured = min(seconds(backbone) for _ in range(3)) / min(seconds(small) for _ in range(3))
    promised = table.seconds([(4, 2048)] * 3, [64]) / table.seconds([(4, 128)] * 3, [64])
    assert measured > 1.5
    assert promised == pytest.approx(measured, rel=0.5)  # close ones need a machine of their own


@pytest.mark.usefixtures("quick")
def test_of_a_model_that_was_pruned_before() -> None:
    backbone = Pretrained(config=BERT)
    whole = Structure.whole(backbone.model)
    prune(
        backbone.model, replace(whole, heads=((0,), (0, 1, 2), (1,)), neurons=((), tuple(range(40)), tuple(range(8))))
    )
    table = LatencyTable.measure(backbone, [8], seconds=0.0)
    assert (table.heads[-1], table.neurons[-1]) == (3, 40)
    assert len(backbone.model.encoder.layer) == 3


@pytest.mark.usefixtures("quick")
def test_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Pretrained(config=BERT)
    first = LatencyTable.cached(backbone, [4, 8], folder=tmp_path, seconds=0.0)
    (file,) = tmp_path.iterdir()
    assert LatencyTable.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    assert json.loads(file.read_text())["machine"]["torch"] == torch.__version__

    asked: list[Any] = []
    monkeypatch.setattr(LatencyTable, "measure", classmethod(lambda cls, *a, **k: asked.append(a) or TABLE))
    # The same machine and kind of layers: other weights do not count.
    assert LatencyTable.cached(Pretrained(config=BERT), [8, 4], folder=tmp_path) == first
    assert asked == []
    other = Pretrained(config={**BERT, "intermediate_size": 32})
    assert LatencyTable.cached(other, [4, 8], folder=tmp_path) == TABLE
    assert LatencyTable.cached(backbone, [4], folder=tmp_path) == TABLE
    assert len(asked) == 2
    file.write_text("{", encoding="utf-8")
    assert LatencyTable.cached(backbone, [4, 8], folder=tmp_path) == TABLE
    assert json.loads(file.read_text())["machine"] == {"device": "abacus"}


def test_besides() -> None:
    class Busy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self) -> None:
            _work(0.02)

    backbone = Busy()

    def predict() -> None:
        _work(0.01)
        backbone()
        backbone()

    assert share_besides(predict, backbone, seconds=0.1) == pytest.approx(0.25, rel=0.2)  # 0.01 to twice 0.02 seconds
    assert not backbone._forward_hooks


def _work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_mistakes() -> None:
    backbone = Pretrained(config=BERT)
    for lengths in ([], [0], [25, 400]):
        with pytest.raises(UserError, match="the lengths to time must be in 1 …"):
            LatencyTable.measure(backbone, lengths)
    for rows in ([], [3, 0]):
        with pytest.raises(UserError, match="the lengths of rows must be at least 1, and there must be some"):
            TABLE.seconds([(4, 8)], rows)
