"""Which parameters stop learning."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.freezing import freeze_backbone
from llm_arch.types import UserError

# What lies above the stack, and what below it, by the names that transformers gives.
STACK = {
    "bert": "encoder.layer",
    "gpt2": "h",
    "llama": "layers",
    "modernbert": "layers",
    "distilbert": "transformer.layer",
}
ABOVE = {"gpt2": ("ln_f",), "llama": ("norm",), "modernbert": ("final_norm",)}


def frozen(backbone: Pretrained) -> set[str]:
    return {k.removeprefix("model.") for k, p in backbone.named_parameters() if not p.requires_grad}


def names(backbone: Pretrained) -> set[str]:
    return {k.removeprefix("model.") for k, _ in backbone.named_parameters()}


@pytest.mark.parametrize("kind", list(STACK))
@pytest.mark.parametrize("count", [1, 2])
def test_a_number_of_layers_takes_all_below_with_it(kind: str, count: int) -> None:
    backbone = Pretrained(f"tiny:{kind}")
    total = len(backbone.layers)
    freeze_backbone(backbone, count)
    expected = set()
    for name in names(backbone):
        layer = re.match(rf"{STACK[kind]}\.(\d+)\.", name)
        if int(layer[1]) < count if layer else name.split(".")[0] not in ABOVE.get(kind, ()):
            expected.add(name)
    assert frozen(backbone) == expected
    assert any("emb" in name or "wte" in name for name in expected)
    trainable = names(backbone) - expected
    assert bool(trainable) == (count < total or kind in ABOVE)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("bert", "embeddings.word_embeddings.weight"), ("gpt2", "wte.weight"), ("llama", "embed_tokens.weight")],
)
def test_embeddings_alone(kind: str, words: str) -> None:
    backbone = Pretrained(f"tiny:{kind}")
    freeze_backbone(backbone, "embeddings")
    assert frozen(backbone) == {words}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_all_and_nothing(kind: str) -> None:
    backbone = Pretrained(f"tiny:{kind}")
    freeze_backbone(backbone, "none")
    assert frozen(backbone) == set()
    freeze_backbone(backbone, "backbone")
    assert frozen(backbone) == names(backbone)


def test_what_is_frozen_gets_no_gradient_and_the_rest_does() -> None:
    backbone = Pretrained("tiny:gpt2", gradient_checkpointing=True)
    freeze_backbone(backbone, 1)
    batch = make_batch({"input_ids": [[5, 6, 7], [8]], "token_type_ids": [None] * 2, "index": [0, 1]})
    backbone(batch).last_TD.pow(3).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name.removeprefix("model.") in frozen(backbone)), name


@pytest.mark.parametrize("count", [0, 3, -1])
def test_a_number_that_the_backbone_does_not_have(count: int) -> None:
    with pytest.raises(UserError, match=f"model.freeze must be between 1 and 2 layers, got {count}"):
        freeze_backbone(Pretrained("tiny:bert"), count)


@pytest.mark.parametrize("what", [True, "head", 1.5, None])
def test_anything_else(what: Any) -> None:
    with pytest.raises(UserError, match=f"must be none, backbone, embeddings or a number of layers, got {what!r}"):
        freeze_backbone(Pretrained("tiny:bert"), what)


def test_weights_stay(tmp_path: Any) -> None:
    backbone = Pretrained("tiny:bert")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    freeze_backbone(backbone, 1)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 40},
        {
            "model_type": "bart",
            "d_model": 16,
            "vocab_size": 40,
            **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
        },
    ],
    ids=["t5", "bart"],
)
def test_of_an_encoder_decoder_the_first_layers_and_the_embeddings_rest(config: dict[str, Any]) -> None:
    backbone = EncoderDecoder(config=config)
    freeze_backbone(backbone, 2)
    encoder, decoder = backbone.layers[:2], backbone.layers[2:]
    assert not any(p.requires_grad for layer in encoder for p in layer.parameters())
    assert all(p.requires_grad for layer in decoder for p in layer.parameters())
    assert not backbone.embeddings.weight.requires_grad
    norms = [p for name, p in backbone.named_parameters() if "final_layer_norm" in name and "decoder" in name]
    assert all(p.requires_grad for p in norms)
