from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from llm_arch.corpus import encoding
from llm_arch.corpus.deduplicate import BANDS
from llm_arch.corpus.encoding import Encoder, cut, key
from llm_arch.corpus.parsing import Block, Fault

TEXT = "the quick brown fox jumps over the lazy dog, and then: a newline\nor two\n\n  indented 123 times é 語"


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<unk>", "[MASK]", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.enable_truncation(3)  # set by some earlier use, and no part of encoding a corpus
    tokenizer.enable_padding(length=50)
    return str(tokenizer.to_str())


BYTES = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
KINDS = {
    "bytes, as GPT-2": BYTES,
    "words, as BERT": trained(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()),
    "pieces, as SentencePiece": trained(pre_tokenizers.Metaspace()),
}


def naive(tokenizer: str, text: str) -> list[int]:
    one = Tokenizer.from_str(tokenizer)
    one.no_truncation()
    one.no_padding()
    one.encode_special_tokens = True
    return list(one.encode(text, add_special_tokens=False).ids)


def block(*texts: object) -> Block:
    return Block("texts", "set", 1, False, json.dumps(texts).encode())


WORDS = st.lists(st.sampled_from(["the", "fox", "é語", "12345", "a", ",", "\n", "\n\n", " ", "\t", "jumps over"]))


@settings(max_examples=100, deadline=None)
@given(words=WORDS, limit=st.integers(2, 30))
def test_parts_are_the_text(words: list[str], limit: int) -> None:
    text = " ".join(words)
    parts = list(cut(text, limit))
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    assert all(parts[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole(kind: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(words=WORDS, limit=st.integers(12, 40))
    def check(words: list[str], limit: int) -> None:
        # A word of text on either side of a space within the limit, as there is in any text.
        text = " the fox ".join(words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoding, "LONGEST", limit)
            patch.setattr(encoding, "AT_ONCE", 2 * limit)
            ids, lengths = Encoder(KINDS[kind], "uint16")._ids([text, "fox", text])
        expected = naive(KINDS[kind], text)
        assert lengths.tolist() == [len(expected), len(naive(KINDS[kind], "fox")), len(expected)]
        assert ids.tolist() == [*expected, *naive(KINDS[kind], "fox"), *expected]

    check()


def test_what_is_kept_of_a_document() -> None:
    encoded = Encoder(BYTES, "uint16")(block("the fox", "é", "the fox", "語 dog"))
    assert encoded.ids.dtype == np.uint16
    assert encoded.documents[:, 0].tolist() == [len(naive(BYTES, t)) for t in ("the fox", "é", "the fox", "語 dog")]
    assert encoded.documents[:, 1].tolist() == [7, 2, 7, 7]
    assert encoded.documents[:, 2].tolist() == [key(t.encode()) for t in ("the fox", "é", "the fox", "語 dog")]
    assert len(set(encoded.documents[:, 2].tolist())) == 3
    assert encoded.faults == []
    near = Encoder(BYTES, "uint32", near=True)(block("the fox", "The fox!"))
    assert near.ids.dtype == np.uint32
    assert near.documents.shape == (2, 3 + BANDS)
    assert np.array_equal(near.documents[0, 3:], near.documents[1, 3:])


def test_special_tokens_in_a_text_are_text() -> None:
    tokenizer = Tokenizer.from_str(BYTES)
    ids = Encoder(BYTES, "uint16")(block("a [MASK] b <end>")).ids.tolist()
    assert not set(ids) & {tokenizer.token_to_id("[MASK]"), tokenizer.token_to_id("<end>")}
    assert tokenizer.decode(ids).replace("Ġ", " ").replace(" ", "") == "a[MASK]b<end>"


def test_texts_without_tokens_or_without_an_encoding() -> None:
    words = KINDS["words, as BERT"]
    encoded = Encoder(words, "uint16")(block("fox", "\u200b\x01", None, "half \ud83d", "dog"))
    assert encoded.documents[:, 0].tolist() == [len(naive(words, "fox")), len(naive(words, "dog"))]
    assert encoded.ids.tolist() == [*naive(words, "fox"), *naive(words, "dog")]
    assert sorted(encoded.faults) == [
        Fault("set", 2, "no tokens"),
        Fault("set", 3, "no text"),
        Fault("set", 4, "half a character (a lone surrogate)"),
    ]


def test_a_block_without_documents() -> None:
    encoded = Encoder(BYTES, "uint16", near=True)(block())
    assert encoded.ids.tolist() == []
    assert encoded.documents.shape == (0, 3 + BANDS)
