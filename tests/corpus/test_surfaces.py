"""Where words and sentences begin, as the tokenizers themselves cut words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_arch.corpus.surfaces import sentences, size, special_tokens, texts, words
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import UserError

LINES = [
    "The quick brown fox jumps over the lazy dog. Another sentence follows, unbelievably!",
    "def multiply(first, second):\n    return first * second\n",
    "Is reinterpretation possible? Internationalisation is hard; reinterpreting harder.",
    "打开客厅的灯。北京欢迎你！你好吗？",
] * 20


@pytest.fixture(scope="module")
def made(tokenizer: str) -> dict[str, Any]:
    kinds = {"wordpiece": 300, "bpe": 360, "larger bpe": 420, "unigram": 160}
    trained = {
        kind: train_tokenizer(LINES, kind.split()[-1], size, progress=False)  # type: ignore[arg-type]
        for kind, size in kinds.items()
    }
    whole = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "a", "b.", "."])}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marked = Tokenizer(models.BPE({"a": 0, "b</w>": 1, ".</w>": 2, "b": 3}, [], end_of_word_suffix="</w>"))
    return trained | {
        "minilm": load_tokenizer(tokenizer),
        "whole": PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="[UNK]"),
        "suffix": PreTrainedTokenizerFast(tokenizer_object=marked),
    }


def ids_of(tokenizer: Any, text: str) -> Any:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", ["wordpiece", "minilm", "bpe", "unigram"])
@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog",
        "Is reinterpretation possible? Internationalisation is hard",
        "unbelievably lazy foxes, reinterpreting sentences.",
    ],
)
def test_words_begin_where_the_tokenizer_begins_them(made: dict[str, Any], kind: str, text: str) -> None:
    tokenizer = made[kind]
    encoded = tokenizer(text, add_special_tokens=False)
    numbers = encoded.word_ids(0)
    expected = [i == 0 or number != numbers[i - 1] for i, number in enumerate(numbers)]
    # Some tokenizers take a mark behind a word for a part of it: here it always counts for itself.
    spans = [encoded.token_to_chars(0, i) for i in range(len(numbers))]
    shown = [text[s.start : s.end].strip() if s is not None else "" for s in spans]
    compared = [i for i, token in enumerate(shown) if token.isalnum()]
    found = words(tokenizer).starts(ids_of(tokenizer, text))
    assert [bool(found[i]) for i in compared] == [expected[i] for i in compared]
    if kind in ("bpe", "unigram"):
        assert sum(not expected[i] for i in compared) > 1  # there are words of several tokens


def test_code_has_words_without_spaces(made: dict[str, Any]) -> None:
    tokenizer = made["bpe"]
    text = "multiply(first,second):\n    return"
    ids = ids_of(tokenizer, text)
    begins = words(tokenizer).starts(ids)
    parts = [tokenizer.decode(part).strip() for part in np.split(ids, np.flatnonzero(begins)[1:])]
    assert [part for part in parts if part.isalnum()] == ["multiply", "first", "second", "return"]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_scripts_without_spaces(made: dict[str, Any], kind: str) -> None:
    """Each token of Chinese counts as a word, unless a character has several tokens (bytes)."""
    tokenizer = made[kind]
    text = "打开客厅的灯"
    ids = ids_of(tokenizer, text)
    begins = words(tokenizer).starts(ids)
    parts = [tokenizer.decode(part).strip() for part in np.split(ids, np.flatnonzero(begins)[1:])]
    assert "".join(parts).replace(" ", "") == text
    assert len(parts) > 1 or len(ids) == 1


def test_marks(made: dict[str, Any]) -> None:
    assert {kind: texts(tokenizer)[1] for kind, tokenizer in made.items()} == {
        "wordpiece": "prefix",
        "minilm": "prefix",
        "bpe": "space",
        "larger bpe": "space",
        "unigram": "space",
        "whole": "whole",
        "suffix": "suffix",
    }
    assert words(made["whole"]).opens.all()
    assert words(made["suffix"]).starts(np.array([0, 3, 1, 0, 2, 1])).tolist() == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_special_tokens_are_no_part_of_words(made: dict[str, Any]) -> None:
    tokenizer = made["minilm"]
    ids = np.array(tokenizer("unbelievably")["input_ids"])
    assert words(tokenizer).starts(ids).tolist() == [True, True, *[False] * (len(ids) - 3), True]
    assert special_tokens(tokenizer)[[tokenizer.cls_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]].all()
    assert special_tokens(tokenizer).sum() == len(set(tokenizer.all_special_ids))


def test_numbers_without_a_token() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 5}, unk_token="[UNK]"))
    holes = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert size(holes) == 6
    assert special_tokens(holes).tolist() == [True, False, True, True, True, False]
    assert words(holes).opens.tolist() == [True] * 6


def test_no_marks() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, ".": 2}, []))
    plain = PreTrainedTokenizerFast(tokenizer_object=backend)
    message = (
        "the tokens of this tokenizer do not show where words begin (no ##, no spaces, no suffix); "
        "set data.masking to token"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        words(plain)
    assert sentences(plain).starts(np.array([0, 2, 1, 0, 2, 2])).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("kind", ["wordpiece", "minilm", "bpe", "unigram"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The fox jumps. Another dog follows! Is it lazy? hard", "The fox jumps|Another dog follows|Is it lazy|hard"),
        ("the lazy dog... another", "the lazy dog|another"),
        ("no end at all", "no end at all"),
    ],
)
def test_sentences(made: dict[str, Any], kind: str, text: str, expected: str) -> None:
    tokenizer = made[kind]
    ids = ids_of(tokenizer, text)
    parts = np.split(ids, np.flatnonzero(sentences(tokenizer).starts(ids)))
    found = [tokenizer.decode(part).strip() for part in parts]
    said = [re.sub(r"\W", "", one).lower() for one in expected.split("|")]
    assert [re.sub(r"\W", "", one).lower() for one in found if one] == said


def test_sentences_of_chinese_and_lines(made: dict[str, Any]) -> None:
    for kind in ("larger bpe", "unigram", "wordpiece"):
        ids = ids_of(made[kind], "打开客厅的灯。北京欢迎你！你好")
        assert sentences(made[kind]).starts(ids).sum() == 2, kind
    ids = ids_of(made["bpe"], "def multiply\n    return first\nreturn second")
    assert sentences(made["bpe"]).starts(ids).sum() == 2
    # Within a number no sentence ends, where spaces tell.
    assert not sentences(made["bpe"]).starts(ids_of(made["bpe"], "a 3.14 b")).any()


def test_empty(made: dict[str, Any]) -> None:
    for one in (words(made["bpe"]), sentences(made["bpe"])):
        assert one.starts(np.array([], dtype=np.int64)).tolist() == []
