"""Models in .gguf files: a small Llama, written as llama.cpp writes it, is the one of transformers that it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf")

import gguf

from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data import NextTokenData
from llm_arch.data.collate import make_batch
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.heads.language_model import LanguageModel
from llm_arch.inference.directory import load, save
from llm_arch.locate import for_transformers, locate
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

HEADS, GROUPS, SIZE, INNER, LAYERS = 4, 2, 64, 96, 2
CHAT = "{% for message in messages %}{{ '<|user|>' + message['content'] }}{% endfor %}"
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Written(NamedTuple):
    path: Path
    model: Any  # of transformers, with the weights as they are after quantization
    tokenizer: Any


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: the halves that rotate together lie side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, *, tied: bool, quantized: bool = False) -> Written:
    tokenizer = train_tokenizer([f"the capital of land {i} is town {i}" for i in range(40)], "bpe", 300, progress=False)
    tokenizer.chat_template = CHAT
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(vocabulary),
        hidden_size=SIZE,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_dimension_count(SIZE // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    end = tokenizer.convert_tokens_to_ids(sorted(special)[0])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_chat_template(CHAT)

    def add(name: str, parameter: Tensor, heads: int = 0) -> None:
        values = parameter.detach().numpy()
        if heads:
            values = interleaved(values, heads)
        values = np.ascontiguousarray(values)
        if not quantized or values.ndim < 2:
            writer.add_tensor(name, values)
            return
        kind = gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        kept = gguf.quants.dequantize(packed, kind)
        if heads:  # blocks lie within rows, so the order of rows does not matter to them
            kept = kept.reshape(heads, -1, 2, kept.shape[1]).swapaxes(1, 2).reshape(kept.shape)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(kept.copy()))

    inner = model.model
    add("token_embd.weight", inner.embed_tokens.weight)
    add("output_norm.weight", inner.norm.weight)
    if not tied:
        add("output.weight", model.lm_head.weight)
    for i, layer in enumerate(inner.layers):
        for theirs, name in NAMES.items():
            heads = {"attn_q": HEADS, "attn_k": GROUPS}.get(name, 0)
            add(f"blk.{i}.{name}.weight", layer.get_submodule(theirs).weight, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, model, tokenizer)


@pytest.mark.parametrize(("tied", "quantized"), [(True, False), (False, True)])
def test_a_gguf_file_is_the_model_it_was(tied: bool, quantized: bool, tmp_path: Path) -> None:
    written = write(tmp_path / "small.gguf", tied=tied, quantized=quantized)
    name = str(written.path)
    text = "the capital of land 7 is"
    data = NextTokenData(tokenizer=name)
    assert data.tokenizer.get_vocab() == written.tokenizer.get_vocab()
    ids = data.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == written.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert data.tokenizer.chat_template == CHAT
    task = Task(backbone_from(name), LanguageModel, LabelSpace(()), vocabulary=data.vocabulary).eval()
    assert isinstance(task.backbone, Pretrained)
    assert task.backbone.layout == "flat"
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert task.head.ties_embeddings is tied
    rows = [ids, ids[:3]]
    batch = make_batch({"input_ids": rows, "token_type_ids": [None, None], "index": [0, 1]})
    logits = task(batch)
    with torch.no_grad():
        expected = torch.stack([written.model(torch.tensor([row])).logits[0, -1] for row in rows])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    # It is trained and saved as any other, with what a chat needs.
    task.loss(type(batch)(**{**vars(batch), "labels": {"targets": batch.input_ids}})).sum.backward()
    assert all(p.grad is not None for p in task.backbone.parameters())
    save(task, data, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.head(again.backbone(batch), batch), logits)
    assert again.data.tokenizer.chat_template == CHAT
    assert again.data.tokenizer(text)["input_ids"] == data.tokenizer(text)["input_ids"]
    stock = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert stock.apply_chat_template([{"content": "hi"}], tokenize=False) == "<|user|>hi"


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    place = locate("package:weights_of_mine/a.gguf")
    assert place == locate(str(package / "a.gguf")) == str(package / "a.gguf")
    assert for_transformers(place) == (str(package), {"gguf_file": "a.gguf"})
    assert for_transformers(str(package)) == (str(package), {})
    assert for_transformers("bert-base-uncased") == ("bert-base-uncased", {})
    with pytest.raises(UserError, match=r"has no file 'b.gguf'"):
        locate("package:weights_of_mine/b.gguf")
    with pytest.raises(UserError, match=r"^b.gguf: no such file"):
        locate("b.gguf")
    (tmp_path / "own.gguf").mkdir()
    assert for_transformers(locate(str(tmp_path / "own.gguf")))[1] == {}


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"no such format")
    with pytest.raises(UserError, match=r"broken.gguf can't be loaded as a model: .*GGUF"):
        Pretrained(str(path))
    with pytest.raises(UserError, match=r"broken.gguf: the file holds no tokenizer that can be read \(.*GGUF"):
        load_tokenizer(str(path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"broken.gguf needs the package gguf to be read; run: pip install"):
        Pretrained(str(path))
