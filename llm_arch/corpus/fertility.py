"""How many tokens a tokenizer makes of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

_AT_ONCE = 256  # texts tokenized together


@dataclass(frozen=True)
class Fertility:
    """How many tokens a tokenizer makes of some text, special ones not counted.

    Attributes:
        documents: texts that were counted.
        words: their words: a run of letters and digits, a punctuation mark, a Chinese character.
        bytes: of UTF-8.
        tokens: what they are tokenized to.
        unknown: how many of the tokens stand for something unknown.
    """

    documents: int
    words: int
    bytes: int
    tokens: int
    unknown: int

    @property
    def tokens_per_word(self) -> float:
        """Fertility (Rust et al. 2021): 1 when no word is split."""
        return self.tokens / max(1, self.words)

    @property
    def tokens_per_byte(self) -> float:
        """The lower, the longer the text that fits a model."""
        return self.tokens / max(1, self.bytes)

    @property
    def unknown_share(self) -> float:
        """Share of unknown tokens."""
        return self.unknown / max(1, self.tokens)


def fertility(tokenizer: Any, texts: Iterable[str]) -> Fertility:
    """Count what a tokenizer makes of texts, best of some that it was not trained on."""
    from llm_arch.data.words import split  # when called: `llm_arch.data` imports this folder

    documents = words = size = tokens = unknown = 0
    texts = iter(texts)
    while batch := list(islice(texts, _AT_ONCE)):
        found = tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        documents += len(batch)
        words += sum(len(split(text)) for text in batch)
        size += sum(len(text.encode()) for text in batch)
        tokens += sum(map(len, found))
        if tokenizer.unk_token_id is not None:
            unknown += sum(ids.count(tokenizer.unk_token_id) for ids in found)
    return Fertility(documents, words, size, tokens, unknown)
