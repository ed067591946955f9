"""The language-model heads of checkpoints: with our states and our names they give transformers' own logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.activations import ACT2FN

from llm_arch import model_directory
from llm_arch.backbones.convolutional import ConvolutionalEncoder
from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.output_head import fitted
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.types import Backbone, UserError

VOCAB = 120
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "vocab_size": VOCAB, "pad_token_id": 1}
MODERNBERT = {**COMMON, "model_type": "modernbert", "cls_token_id": 2, "sep_token_id": 3}
MASKED: dict[str, dict[str, Any]] = {
    "bert": {**COMMON, "model_type": "bert"},
    "bert, relu": {**COMMON, "model_type": "bert", "hidden_act": "relu", "layer_norm_eps": 0.1},
    "roberta": {**COMMON, "model_type": "roberta", "hidden_act": "relu", "layer_norm_eps": 0.1},
    "camembert": {**COMMON, "model_type": "camembert"},
    "xlm-roberta": {**COMMON, "model_type": "xlm-roberta"},
    "mpnet": {**COMMON, "model_type": "mpnet"},
    "distilbert": {**DISTILBERT, "model_type": "distilbert", "activation": "relu"},
    "modernbert": {**MODERNBERT, "norm_eps": 0.1},
    "modernbert, other biases": {
        **MODERNBERT,
        "classifier_bias": True,
        "norm_bias": True,
        "decoder_bias": False,
        "classifier_activation": "silu",
    },
    "electra": {**COMMON, "model_type": "electra", "embedding_size": 8, "hidden_act": "relu"},
    "albert": {**COMMON, "model_type": "albert", "embedding_size": 8},
    "bert, untied": {**COMMON, "model_type": "bert", "tie_word_embeddings": False},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {**COMMON, "model_type": "gpt2", "n_inner": 24},
    "gpt2, untied": {**COMMON, "model_type": "gpt2", "n_inner": 24, "tie_word_embeddings": False},
    "llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 2},
    "llama, tied": {**COMMON, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    **{kind: {**COMMON, "model_type": kind, "num_key_value_heads": 2} for kind in ("mistral", "qwen2", "qwen3")},
}
UNTIED = {"bert, untied", "gpt2, untied", "llama", "mistral", "qwen2", "qwen3"}
ROWS = [[5, 6, 7, 8, 20], [9, 11, 119]]
Save = Callable[..., nn.Module]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a whole language model of transformers, whose every weight counts, into a folder."""

    def save(config: dict[str, Any], kind: str, **options: Any) -> nn.Module:
        made = (AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM).from_config(
            AutoConfig.for_model(**config), dtype=torch.float32
        )
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.3)
        made.tie_weights()
        made.save_pretrained(tmp_path / "model", **options)
        return made.eval()

    return save


def states(backbone: Backbone, rows: list[list[int]]) -> Tensor:
    batch = make_batch({"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))})
    return backbone.eval()(batch).last_TD


def logits_of(backbone: Backbone, kind: Any, rows: list[list[int]]) -> Tensor:
    """What the seam says a head computes."""
    weights, style = backbone.output_head(kind), backbone.head_style()
    assert weights is not None
    hidden = states(backbone, rows)
    if kind == "masked":
        hidden = ACT2FN[style["activation"]](linear(hidden, weights["dense.weight"], weights.get("dense.bias")))
        norm = (weights["norm.weight"].shape, weights["norm.weight"], weights.get("norm.bias"), style["norm_eps"])
        hidden = layer_norm(hidden, *norm)
    return linear(hidden, weights.get("weight", backbone.embeddings.weight), weights.get("bias"))


def logits_of_transformers(model: nn.Module, rows: list[list[int]]) -> Tensor:
    found = [model(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)) for row in rows]
    return torch.cat([out.logits[0] for out in found])


@pytest.mark.parametrize(("kind", "name"), [*(("masked", n) for n in MASKED), *(("causal", n) for n in CAUSAL)])
@torch.no_grad()
def test_logits_are_those_of_transformers(save: Save, tmp_path: Path, kind: str, name: str) -> None:
    config = (MASKED | CAUSAL)[name]
    model = save(config, kind)
    backbone = Pretrained(str(tmp_path / "model"))
    expected = logits_of_transformers(model, ROWS)
    torch.testing.assert_close(logits_of(backbone, kind, ROWS), expected, rtol=1e-5, atol=1e-5)
    weights = backbone.output_head(kind)
    assert ("weight" in weights) == (name in UNTIED)
    assert backbone.head_style()["tied"] == (name not in UNTIED)
    if kind == "masked":
        assert ("bias" in weights) == backbone.head_style().get("bias", True)
        assert ("dense.bias" in weights) == backbone.head_style().get("dense_bias", True)
        assert ("norm.bias" in weights) == backbone.head_style().get("norm_bias", True)
    other = "causal" if kind == "masked" else "masked"
    assert backbone.output_head(other) is None


@torch.no_grad()
def test_only_what_is_asked_for_is_read_from_shards(save: Save, tmp_path: Path) -> None:
    model = save(MASKED["bert"], "masked", max_shard_size="1KB")
    directory = tmp_path / "model"
    backbone = Pretrained(str(directory))
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith("cls.")}
    assert len(needed) > 1
    others = set(index.values()) - needed
    assert others
    for name in others:
        (directory / name).unlink()
    expected = logits_of_transformers(model, ROWS)
    torch.testing.assert_close(logits_of(backbone, "masked", ROWS), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_from_the_cache_of_the_hub(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(MASKED["roberta"], "masked")
    repository = tmp_path / "hub" / "models--some--one"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("other", "b" * 40)):
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        for path in (tmp_path / "model").iterdir():
            (repository / "snapshots" / commit / path.name).write_bytes(path.read_bytes())
    changed = repository / "snapshots" / ("b" * 40) / "model.safetensors"
    weights = load_file(changed)
    weights["lm_head.bias"] += 7
    save_file(weights, changed, {"format": "pt"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    expected = logits_of_transformers(model, ROWS)
    torch.testing.assert_close(logits_of(Pretrained("some/one"), "masked", ROWS), expected, rtol=1e-5, atol=1e-5)
    other = Pretrained("some/one", revision="other")
    torch.testing.assert_close(logits_of(other, "masked", ROWS), expected + 7, rtol=1e-5, atol=1e-5)


def edit_weights(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def test_names_of_the_first_checkpoints(save: Save, tmp_path: Path) -> None:
    model = save(MASKED["bert"], "masked")

    def change(weights: dict[str, Tensor]) -> None:
        for name in list(weights):
            if "LayerNorm" in name:
                old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                weights[old] = weights.pop(name)
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()

    edit_weights(tmp_path / "model", change)
    backbone = Pretrained(str(tmp_path / "model"))
    expected = logits_of_transformers(model, ROWS)
    torch.testing.assert_close(logits_of(backbone, "masked", ROWS), expected, rtol=1e-5, atol=1e-5)
    assert "weight" not in backbone.output_head("masked")  # it is the embeddings, written twice


@torch.no_grad()
def test_a_projection_that_differs_from_the_embeddings_counts(save: Save, tmp_path: Path) -> None:
    save(CAUSAL["gpt2"], "causal")
    projection = torch.randn(VOCAB, 16)
    edit_weights(tmp_path / "model", lambda weights: weights.update({"lm_head.weight": projection}))
    backbone = Pretrained(str(tmp_path / "model"))
    assert torch.equal(backbone.output_head("causal")["weight"], projection)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    expected = logits_of_transformers(again, ROWS)
    torch.testing.assert_close(logits_of(backbone, "causal", ROWS), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_half_precision_comes_as_fp32(save: Save, tmp_path: Path) -> None:
    save(MASKED["bert"], "masked")
    edit_weights(tmp_path / "model", lambda weights: weights.update({k: v.bfloat16() for k, v in weights.items()}))
    weights = Pretrained(str(tmp_path / "model")).output_head("masked")
    assert {v.dtype for v in weights.values()} == {torch.float32}


# Where no head came along


def test_weights_without_a_head(save: Save, tmp_path: Path) -> None:
    directory = str(tmp_path / "model")
    Pretrained(config=MASKED["bert"]).model.save_pretrained(directory)
    assert Pretrained(directory).output_head("masked") is None
    save(MASKED["bert"], "masked")
    assert Pretrained(directory).output_head("masked") is not None
    assert Pretrained(directory, random_init=True).output_head("masked") is None
    assert Pretrained("tiny:bert").output_head("masked") is None
    assert Pretrained("mini:llama").output_head("causal") is None


def test_a_decoder_whose_head_is_elsewhere(tmp_path: Path) -> None:
    Pretrained(config=CAUSAL["llama"]).model.save_pretrained(tmp_path / "untied")
    assert Pretrained(str(tmp_path / "untied")).output_head("causal") is None
    Pretrained(config=CAUSAL["gpt2"]).model.save_pretrained(tmp_path / "tied")
    assert Pretrained(str(tmp_path / "tied")).output_head("causal") == {}


def test_heads_that_compute_otherwise_are_left(save: Save, tmp_path: Path) -> None:
    save({**COMMON, "model_type": "deberta-v2"}, "masked")
    assert Pretrained(str(tmp_path / "model")).output_head("masked") is None


def test_what_cannot_be_read_is_named(save: Save, tmp_path: Path) -> None:
    save(MASKED["bert"], "masked")
    backbone = Pretrained(str(tmp_path / "model"))
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model: the language-model head can't be read \(.+\)"):
        backbone.output_head("masked")
    path.unlink()
    with pytest.raises(UserError, match=r"model: the language-model head can't be read \(.+\)"):
        backbone.output_head("masked")


# A vocabulary that has grown


@torch.no_grad()
def test_new_tokens_are_as_unlikely_as_the_rarest(save: Save, tmp_path: Path) -> None:
    save(MASKED["bert, untied"], "masked")
    backbone = Pretrained(str(tmp_path / "model"))
    before, bias = logits_of(backbone, "masked", ROWS), backbone.output_head("masked")["bias"]
    backbone.grow(VOCAB + 5)
    after, grown = logits_of(backbone, "masked", ROWS), backbone.output_head("masked")
    assert after.shape == (8, VOCAB + 5)
    torch.testing.assert_close(after[:, :VOCAB], before)
    assert torch.equal(grown["bias"][VOCAB:], bias.min().expand(5))
    assert len(grown["weight"].unique(dim=0)) == VOCAB + 5


def test_rows_beyond_the_embeddings_are_cut() -> None:
    weights = {"bias": torch.arange(6.0), "weight": torch.randn(6, 2), "dense.bias": torch.ones(2)}
    found = fitted(weights, 4)
    assert found["bias"].tolist() == [0, 1, 2, 3]
    assert torch.equal(found["weight"], weights["weight"][:4])
    assert torch.equal(found["dense.bias"], weights["dense.bias"])


# Model directories of ours

HEADS = {
    "masked": "llm_arch.heads.masked_language_model.MaskedLanguageModel",
    "causal": "llm_arch.heads.language_model.LanguageModel",
}


def write(directory: Path, backbone: Backbone, class_path: str | None, weights: dict[str, Tensor]) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        record = {"class_path": backbone.class_path, **backbone.save(folder)}
        save_file(weights, folder / model_directory.HEAD)
        head = {"class_path": class_path} if class_path else {}
        return {"backbone": record, "head": head, "label_space": {}, "data": {}}

    model_directory.write(directory, fill)


@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize(
    "make",
    [lambda: Pretrained("tiny:bert"), lambda: ConvolutionalEncoder(vocabulary_size=20, hidden_size=8)],
    ids=["transformer", "cnn"],
)
def test_the_head_of_a_model_directory(tmp_path: Path, make: Callable[[], Backbone], kind: Any) -> None:
    backbone = make()
    assert backbone.output_head(kind) is None
    size = backbone.embeddings.num_embeddings
    weights = {"bias": torch.randn(size), "dense.weight": torch.randn(3, 3), "threshold": torch.ones(1)}
    write(tmp_path / "model", backbone, HEADS[kind], weights)
    ways = [backbone_from(str(tmp_path / "model"))]
    if isinstance(backbone, Pretrained):
        ways.append(Pretrained(str(tmp_path / "model")))
    for loaded in ways:
        found = loaded.output_head(kind)
        assert found is not None
        assert found.keys() == {"bias", "dense.weight"}
        assert all(torch.equal(found[name], weights[name]) for name in found)
        assert loaded.output_head("causal" if kind == "masked" else "masked") is None
        loaded.grow(size + 2)
        assert len(loaded.output_head(kind)["bias"]) == size + 2


def test_other_heads_of_a_model_directory_are_no_language_models(tmp_path: Path) -> None:
    for i, class_path in enumerate((None, "llm_arch.heads.classification.SequenceClassification")):
        write(tmp_path / str(i), Pretrained("tiny:bert"), class_path, {"bias": torch.ones(2)})
        assert backbone_from(str(tmp_path / str(i))).output_head("masked") is None
