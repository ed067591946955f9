"""A vocabulary without unused tokens: texts tokenize to the same pieces, and the model says the same of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_arch.backbones.adapters import Adapted
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.vocabulary import prune_tokenizer, prune_vocabulary, tokens_to_keep
from llm_arch.data.collate import make_batch
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.types import LabelSpace, UserError

CORPUS = [
    "the lamp in the kitchen is warm and bright, the window stays open",
    "turn on the lights in the living room; play some music, please!",
    "Größe und Wärme, naïve café — 東京 の 天気 は 晴れ",
    "lighter brighter warmer darker lighthouse kitchenette lampshade windows windowed",
    "numbers 1234567890 3.14 and signs #@%&*() [MASK] <pad>",
] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = sorted({word for text in CORPUS for word in text.split()} | {"tower", "zebra", "unlit", "ßß", "🙂"})


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=220, special_tokens=SPECIAL))
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def suffix_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=230, special_tokens=SPECIAL, unk_token="[UNK]")
    tokenizer.train_from_iterator(CORPUS[:2] * 4 + CORPUS[3:], trainer)
    tokenizer.post_processor = processors.Sequence([processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIAL))
    return tokenizer


MAKERS = {f.__name__: f for f in (wordpiece, byte_bpe, suffix_bpe, unigram, word_level)}


def fast(backend: Tokenizer) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.add_tokens([AddedToken("lampshade", single_word=True), "<new>"])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: fast(make()) for name, make in MAKERS.items()}


def pieces(tokenizer: Any, texts: list[str]) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS) | st.text("aegimnrtß天 '#", max_size=8), max_size=6).map(" ".join),
        min_size=1,
        max_size=4,
    )
)
def test_texts_keep_their_pieces(name, texts, tokenizers):
    tokenizer = tokenizers[name]
    kept = tokens_to_keep(tokenizer, {i for ids in tokenizer(texts)["input_ids"] for i in ids})
    pruned = prune_tokenizer(tokenizer, kept)
    assert len(pruned) == len(kept) <= len(tokenizer)
    assert pieces(pruned, texts) == pieces(tokenizer, texts)
    old, new = tokenizer(texts)["input_ids"], pruned(texts)["input_ids"]
    assert [kept[ids].tolist() if ids else [] for ids in new] == old
    assert [pruned.decode(ids) for ids in new] == [tokenizer.decode(ids) for ids in old]
    pair = [one.backend_tokenizer.encode(texts[0], texts[-1]) for one in (pruned, tokenizer)]
    assert (pair[0].tokens, pair[0].type_ids) == (pair[1].tokens, pair[1].type_ids)
    assert pruned.mask_token_id == kept.tolist().index(tokenizer.mask_token_id)
    assert pruned.tokenize("a <new> lampshade")[-3:] == tokenizer.tokenize("a <new> lampshade")[-3:]


def test_vocabulary_shrinks(tokenizers):
    for name in ("wordpiece", "byte_bpe", "unigram"):
        tokenizer = tokenizers[name]
        kept = tokens_to_keep(tokenizer, tokenizer("the lamp")["input_ids"])
        assert len(kept) < len(tokenizer) - 20
        # What other texts say still has pieces, of single characters at worst.
        assert "[UNK]" not in prune_tokenizer(tokenizer, kept).tokenize("bright windows")


def test_a_real_tokenizer_with_its_class(tokenizer, tmp_path):
    real = load_tokenizer(tokenizer)
    texts = ["Turn the kitchen lights off, it's a naïve idea!", "antidisestablishmentarianism 東京 ☃"]
    kept = tokens_to_keep(real, {i for ids in real(texts)["input_ids"] for i in ids})
    pruned = prune_tokenizer(real, kept)
    assert type(pruned) is type(real)
    assert len(kept) < 3000
    pruned.save_pretrained(tmp_path)
    assert pieces(AutoTokenizer.from_pretrained(tmp_path), texts) == pieces(real, texts)


COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 32,
}
CONFIGS = {
    "bert": {**COMMON, "model_type": "bert", "pad_token_id": 0},
    "roberta": {**COMMON, "model_type": "roberta", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "gpt2": {**COMMON, "model_type": "gpt2", "bos_token_id": 39, "eos_token_id": 39},
    "modernbert": {**COMMON, "model_type": "modernbert", "pad_token_id": 3, "cls_token_id": 4, "sep_token_id": 5},
    "llama": {**COMMON, "model_type": "llama", "eos_token_id": [7, 39], "pad_token_id": 38},
}
KEPT = torch.tensor([0, 1, 2, 3, 4, 5, 7, 9, 20, 21, 33, 38, 39])


def batch_of(ids: list[list[int]]) -> Any:
    return make_batch({"input_ids": ids, "token_type_ids": [None] * len(ids), "index": list(range(len(ids)))})


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("adapted", [False, True])
def test_model_says_the_same(kind, adapted, tmp_path):
    backbone: Any = Pretrained(config=CONFIGS[kind])
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    if adapted:
        backbone = Adapted(backbone, rank=2)
    backbone.eval()
    heads = [LanguageModel(16, LabelSpace(()), tied=tied) for tied in (True, False)] if backbone.causal else []
    heads = heads or [MaskedLanguageModel(16, LabelSpace(()))]
    for head in heads:
        head.bind(backbone)
        if head.bias is not None:
            torch.nn.init.normal_(head.bias)
    new = [[0, 6, 8, 10, 3], [12, 7]]
    old, now = batch_of([KEPT[ids].tolist() for ids in new]), batch_of(new)
    with torch.no_grad():
        states = backbone(old).last_TD
        logits = [head.logits(states) for head in heads]
        table = backbone.embeddings.weight
        backbone.keep_vocabulary(KEPT)
        assert backbone.embeddings.weight is table
        assert backbone(now).last_TD.equal(states)
        for head, before in zip(heads, logits, strict=True):
            head.keep_vocabulary(KEPT)
            torch.testing.assert_close(head.logits(states), before[:, KEPT], rtol=0, atol=1e-6)
    assert backbone.config.vocab_size == backbone.embeddings.num_embeddings == len(KEPT)
    record = backbone.save(tmp_path)
    loaded = Pretrained.load(tmp_path, record).eval()
    with torch.no_grad():
        assert loaded(now).last_TD.equal(states)
    said = json.loads(Path(tmp_path, "config.json").read_text())
    wanted = {"gpt2": 12, "llama": [6, 12]}
    assert kind not in wanted or said["eos_token_id"] == wanted[kind]
    assert kind != "llama" or said["pad_token_id"] == 11
    backbone.grow(20)
    assert backbone.embeddings.num_embeddings == 20


def test_head_of_the_checkpoint_is_cut_likewise(tmp_path):
    """Also where it is read only after the vocabulary was pruned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {k: v for k, v in CONFIGS["llama"].items() if k != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**values, tie_word_embeddings=False))
    model.save_pretrained(tmp_path)
    backbone = Pretrained(str(tmp_path))
    backbone.grow(42)
    backbone.keep_vocabulary(torch.cat([KEPT, torch.tensor([40])]))
    head = LanguageModel(16, LabelSpace(()))
    head.bind(backbone)
    assert head.weight is not None
    assert head.weight[: len(KEPT)].equal(model.lm_head.weight[KEPT])
    assert len(head.weight) == len(KEPT) + 1


def test_refuses_what_cannot_be(tokenizers):
    backbone = Pretrained(config=CONFIGS["roberta"])
    with pytest.raises(UserError, match="positions from its padding token, which must keep the id 1"):
        backbone.keep_vocabulary(torch.tensor([1, 2, 5]))
    for bad in ([3, 2], [0, 40], [-1, 2], [2, 2]):
        with pytest.raises(UserError, match="rising order"):
            backbone.keep_vocabulary(torch.tensor(bad))
    with pytest.raises(UserError, match="row of ids"):
        prune_vocabulary(backbone.model, torch.tensor([1.0]))
    with pytest.raises(UserError, match="is the id of no token"):
        tokens_to_keep(tokenizers["unigram"], [10_000])
    with pytest.raises(UserError, match="can't do without '.UNK.'|can't do without"):
        prune_tokenizer(tokenizers["wordpiece"], torch.tensor([0, 1, 2, 3, 4, 9]))
    classifier = SequenceClassification(16, LabelSpace(("a", "b")))
    classifier.keep_vocabulary(KEPT)  # has nothing to do with it
