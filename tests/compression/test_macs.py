"""Multiply-accumulates by formula, against torch counting what really runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from llm_arch.compression.macs import macs_of, macs_per_token, macs_prices

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 20}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SHAPE,
    "roberta": {**SHAPE, "max_position_embeddings": 40},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_inner": 24, "vocab_size": 20},
    "modernbert": {**SHAPE, "pad_token_id": 0, "global_attn_every_n_layers": 1},
    "llama": {**SHAPE, "num_key_value_heads": 2},
}


def model_of(kind: str) -> Any:
    config = AutoConfig.for_model(kind, **CONFIGS[kind])
    arguments = {"add_pooling_layer": False} if kind in ("bert", "roberta") else {}
    return AutoModel.from_config(config, attn_implementation="eager", **arguments).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_as_torch_counts(kind: str) -> None:
    model = model_of(kind)
    for length in (5, 16):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.ones(1, length, dtype=torch.long))
        counted = counter.get_total_flops() / 2
        if kind in ("llama", "modernbert"):  # angles of rotary positions, as a product with one column
            counted -= sum(
                flops / 2
                for name, by_op in counter.get_flop_counts().items()
                if name.endswith("rotary_emb") or name.endswith("rotary_embedding")
                for flops in by_op.values()
            )
        assert macs_per_token(model, length) * length == counted
        assert macs_of(model, [(macs_prices(model, [1]).heads.size - 1, 24)] * 3, length) == pytest.approx(
            counted / length
        )


def test_of_a_structure() -> None:
    model = model_of("bert")
    prices = macs_prices(model, [10])
    assert prices.of_layer(4, 24) == 4 * 16 * 16 + 2 * 16 * 24 + 2 * 10 * 16
    assert prices.of_layer(1, 0) == 4 * 16 * 4 + 2 * 10 * 4
    assert macs_of(model, [(0, 3), None, (2, 0)], 10) == 2 * 16 * 3 + 4 * 16 * 8 + 2 * 10 * 8


def test_of_rows_of_several_lengths() -> None:
    """A token of a long row sees more, and there are more of them."""
    model = model_of("gpt2")
    whole = [(4, 24)] * 3
    tokens = [macs_of(model, whole, length) * length for length in (4, 12)]
    assert macs_prices(model, [4, 12]).total(whole) == pytest.approx(sum(tokens) / 16)
