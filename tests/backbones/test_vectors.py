"""Word vector files against tokenizers of every kind, and what is wrong with them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_arch.backbones.vectors import WordVectors, read_vectors, vocabulary_size
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import UserError

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def wordpiece(*words: str, lower: bool = True) -> Any:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def byte_level(*tokens: str) -> Any:
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", *tokens])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def sentencepiece(*tokens: str) -> Any:
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *((token, -1.0) for token in tokens)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: str, name: str = "vectors.txt", end: str = "\n") -> str:
        path = tmp_path / name
        content = "".join(line + end for line in lines).encode("utf-8", "surrogateescape")
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


def as_dict(found: WordVectors, tokenizer: Any) -> dict[str, list[float]]:
    tokens = tokenizer.convert_ids_to_tokens(found.rows_N.tolist())
    return dict(zip(tokens, found.values_NE.tolist(), strict=True))


# Which token has which vector


def test_words_of_a_wordpiece_vocabulary(write: Callable[..., str]) -> None:
    words = wordpiece("cat", "dog", "##s", "##cat", "#", ",")
    found = read_vectors(write("cat 1 2", "s 3 4", ", 5 6", "# 7 8", "[PAD] 9 9", "emu 1 1"), words)
    assert as_dict(found, words) == {"cat": [1, 2], "#": [7, 8], ",": [5, 6]}
    assert found.values_NE.dtype == torch.float32
    assert found.rows_N.tolist() == sorted(found.rows_N.tolist())
    assert found.read == 6
    assert found.coverage(10) == (
        f"word vectors: 3 of 10 tokens (30.0%) have one of the 6 vectors of 2 numbers in {found.name}"
    )


def test_words_of_a_byte_level_vocabulary(write: Callable[..., str]) -> None:
    words = byte_level("Ġcat", "cat", "ĠcafÃ©", ",", "Ġ", "Ã")
    found = read_vectors(write("cat 1 2", "café 3 4", ", 5 6", "<s> 7 8"), words)
    assert as_dict(found, words) == {"Ġcat": [1, 2], "cat": [1, 2], "ĠcafÃ©": [3, 4], ",": [5, 6]}


def test_words_of_a_sentencepiece_vocabulary(write: Callable[..., str]) -> None:
    words = sentencepiece("▁cat", "cat", "▁café", "▁")
    found = read_vectors(write("cat 1 2", "café 3 4", "▁ 5 6"), words)
    assert as_dict(found, words) == {"▁cat": [1, 2], "cat": [1, 2], "▁café": [3, 4]}


def test_an_equal_word_beats_one_that_is_normalized_and_the_first_beats_the_rest(write: Callable[..., str]) -> None:
    words = wordpiece("cat", "dog", "cafe")
    lines = ("Cat 1 1", "cat 2 2", "cat 3 3", "DOG 4 4", "Dog 5 5", "Café 6 6")
    found = read_vectors(write(*lines), words)
    assert as_dict(found, words) == {"cat": [2, 2], "dog": [4, 4], "cafe": [6, 6]}


def test_case_counts_where_the_tokenizer_keeps_it(write: Callable[..., str]) -> None:
    words = wordpiece("Cat", "dog", lower=False)
    found = read_vectors(write("cat 1 1", "Dog 2 2", "dog 3 3"), words)
    assert as_dict(found, words) == {"dog": [3, 3]}


def test_a_real_vocabulary(write: Callable[..., str], tokenizer: str) -> None:
    words = load_tokenizer(tokenizer)
    found = read_vectors(write("the 1 2", "Kitchen 3 4", "##ing 5 6", "[CLS] 7 8"), words)
    assert as_dict(found, words) == {"the": [1, 2], "kitchen": [3, 4]}
    assert vocabulary_size(words) == 30522


def test_vocabulary_size_covers_every_id() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 7}, unk_token="[UNK]"))
    assert vocabulary_size(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")) == 8


# Formats


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.vec.gz"])
@pytest.mark.parametrize("header", [(), ("2 3",)])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"])
def test_formats(write: Callable[..., str], name: str, header: tuple[str, ...], end: str) -> None:
    words = wordpiece("cat", "dog")
    found = read_vectors(write(*header, "cat 1 -2.5 3e-1", "dog 0 0.25 4", name=name, end=end), words)
    expected = {"cat": [1, -2.5, 0.3], "dog": [0, 0.25, 4]}
    assert as_dict(found, words) == {k: np.float32(v).tolist() for k, v in expected.items()}
    assert found.read == 2


def test_odd_words_are_no_tokens_and_no_mistake(write: Callable[..., str]) -> None:
    words = wordpiece("cat", "dog", "2")
    odd = (
        ". . . 1 2",
        "at name@domain.com 1 2",
        "a\u00a0b 1 2",
        "a\u2028b 1 2",
        "\udcff\udcfe 1 2",
        "3/4 1 2",
        "2 8 9",
    )
    found = read_vectors(write("cat 3 4", *odd), words)
    assert as_dict(found, words) == {"cat": [3, 4], "2": [8, 9]}
    assert found.read == 8


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cat", "dog", "emu", "Cat", "xyz"]), st.lists(st.floats(-9, 9), min_size=3, max_size=3)
        ),
        min_size=1,
    )
)
def test_every_line_by_hand(tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, list[float]]]) -> None:
    path = tmp_path_factory.mktemp("v") / "v.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in lines))
    words = wordpiece("cat", "dog", "emu")
    expected: dict[str, list[float]] = {}
    for same in (True, False):
        for word, numbers in lines:
            if word == word.lower() if same else True:
                expected.setdefault(word.lower(), np.float32(numbers).tolist())
    expected.pop("xyz", None)
    if not expected:
        with pytest.raises(UserError, match="is a token"):
            read_vectors(str(path), words)
    else:
        assert as_dict(read_vectors(str(path), words), words) == expected


# Mistakes


@pytest.mark.parametrize(
    ("lines", "line", "wanted"),
    [
        (("cat 1 2", "dog 1"), 2, "2 finite numbers"),
        (("cat 1 2", "dog 1 2 3"), 2, "2 finite numbers"),
        (("cat 1 2", "emu 1 2 3"), 2, "2 finite numbers"),
        (("cat 1 2", "emu"), 2, "2 finite numbers"),
        (("cat 1 2", ""), 2, "2 finite numbers"),
        (("cat 1 2", " 1 2"), 2, "2 finite numbers"),
        (("cat 1 2", "dog x 2"), 2, "2 finite numbers"),
        (("cat 1  2",), 1, "3 finite numbers"),
        (("cat 1 nan",), 1, "2 finite numbers"),
        (("cat 1 1e999",), 1, "2 finite numbers"),
        (("3 4", "cat 1 2"), 2, "4 finite numbers"),
        (("cat",), 1, "its finite numbers"),
        (("cat\t1\t2",), 1, "its finite numbers"),
        (("30 200", "\x00\x01binary"), 2, "200 finite numbers"),
    ],
)
def test_a_malformed_line_is_named(write: Callable[..., str], lines: tuple[str, ...], line: int, wanted: str) -> None:
    name = write(*lines)
    message = rf"vectors\.txt, line {line}: expected a word and {wanted}, separated by single spaces, got .*GloVe"
    with pytest.raises(UserError, match=message):
        read_vectors(name, wordpiece("cat", "dog"))


def test_no_word_in_common(write: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"vectors\.txt: none of its 2 words is a token; take vectors of the language"):
        read_vectors(write("Katze 1 2", "Hund 3 4"), wordpiece("cat", "dog"))


@pytest.mark.parametrize("lines", [(), ("2 3",)])
def test_a_file_without_vectors(write: Callable[..., str], lines: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="none of its 0 words is a token"):
        read_vectors(write(*lines), wordpiece("cat"))


def test_no_file(tmp_path: Path) -> None:
    for name in ("nothing.txt", str(tmp_path)):
        with pytest.raises(UserError, match=rf"vectors: {name}: no such file; check the path"):
            read_vectors(name, wordpiece("cat"))


@pytest.mark.parametrize("keep", [5, 25])
def test_a_damaged_archive(write: Callable[..., str], keep: int) -> None:
    path = Path(write("cat 1 2", "dog 3 4", name="v.txt.gz"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"v\.txt\.gz is damaged \(.+\); fetch it again"):
        read_vectors(str(path), wordpiece("cat"))
    path.write_bytes(b"cat 1 2\n")
    with pytest.raises(UserError, match=r"v\.txt\.gz is damaged \(.+\); fetch it again"):
        read_vectors(str(path), wordpiece("cat"))
