"""What is counted of the tokens that a tokenizer makes."""

import pytest

from llm_arch.corpus.fertility import Fertility, fertility
from llm_arch.corpus.tokenizer_training import train_tokenizer


def test_fertility_counts_words_bytes_and_unknowns():
    tokenizer = train_tokenizer(["lamp lamp warm warm 灯 灯"], "wordpiece", 60)
    found = fertility(tokenizer, iter(["lamp, warm", "灯Ж亮 lamp"]))
    # `,`, `Ж` and `亮` were not seen; `Ж` is a word by itself, since Chinese characters are.
    assert found == Fertility(documents=2, words=7, bytes=10 + 2 * 3 + 2 + 5, tokens=7, unknown=3)
    assert found.tokens_per_word == 1
    assert found.tokens_per_byte == pytest.approx(7 / 23)
    assert found.unknown_share == pytest.approx(3 / 7)


def test_fertility_of_bytes():
    tokenizer = train_tokenizer(["x"], "bpe", 259)
    assert fertility(tokenizer, ["灯 é"]) == Fertility(documents=1, words=2, bytes=6, tokens=6, unknown=0)
