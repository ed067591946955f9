"""A tokenizer whose ids a test can work out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_arch.data import TextClassificationData
from llm_arch.data.tokenizers import load_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = (*SPECIAL, *(f"w{i}" for i in range(96)))


@pytest.fixture(scope="session")
def id_of() -> dict[str, int]:
    """Word to id; a word that is not here is unknown."""
    return {word: i for i, word in enumerate(VOCABULARY)}


def save_words(folder: Path, vocabulary: tuple[str, ...] = VOCABULARY, **options: Any) -> str:
    """One id a word, with [CLS] first and [SEP] behind each text."""
    place = {word: i for i, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(place, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", place["[SEP]"]), ("[CLS]", place["[CLS]"]))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    options = {"model_input_names": inputs, **names, **options}
    PreTrainedTokenizerFast(tokenizer_object=backend, **options).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def make_words() -> Callable[..., str]:
    """`save_words`, for tests that can't import this file."""
    return save_words


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of the tokenizer."""
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def make_data(words: str, tmp_path: Path) -> Callable[..., TextClassificationData]:
    """A data module with a cache of its own, which cuts nothing off unless told to."""

    def make(train: str | None = None, **options: Any) -> TextClassificationData:
        defaults: dict[str, Any] = {
            "tokenizer": words,
            "cache_dir": str(tmp_path / "cache"),
            "validation_fraction": 0.0,
        }
        return TextClassificationData(train, **(defaults | options))

    return make


_CORPUS = ["turn on the kitchen light", "打开客厅的灯，北京欢迎你", "ไทยแลนด์ สวัสดี", "don't stop 12.5% naïve café"] * 20


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, tokenizer: str, words: str) -> dict[str, Any]:
    """Loaded tokenizers of every kind; the small ones learnt from a few lines."""
    folder = tmp_path_factory.mktemp("tokenizers")
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learn = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator(_CORPUS, learn)
    byte_level.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(_CORPUS, pieces)
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    for name, backend in (("byte_level", byte_level), ("unigram", unigram)):
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>").save_pretrained(
            folder / name
        )
    places = {"word_piece": tokenizer, "words": words, **{n: str(folder / n) for n in ("byte_level", "unigram")}}
    return {name: load_tokenizer(place) for name, place in places.items()}
