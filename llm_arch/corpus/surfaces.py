"""What the tokens of a vocabulary look like in a text: where words begin, and which tokens end a sentence.

Token ids are all that a corpus keeps, so this is decided once for each token of the vocabulary. The rules follow the
marks that tokenizers leave: `##` on pieces within a word, a space in front of a word, a suffix at its end.

Legend: V vocabulary, T tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

from llm_arch.types import UserError

Flags = NDArray[np.bool_]

# Scripts that are written without spaces: each of their tokens counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SIZES: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()  # tokens, and one more than the highest id
# Letters and digits, and the broken halves of such (�), of scripts with spaces.
_WITHIN_WORD = re.compile(rf"(?![{_UNSPACED}])[\w\ufffd]")


@dataclass(frozen=True, eq=False)
class Words:
    """Which tokens begin words.

    Attributes:
        opens: (V,) a word begins with this token.
        closes: (V,) a word begins behind this token.
    """

    opens: Flags
    closes: Flags

    def starts(self, ids_T: NDArray[Any]) -> Flags:
        """(T,) whether a word begins with each token; one does with the first."""
        starts_T = self.opens[ids_T]
        starts_T[1:] |= self.closes[ids_T[:-1]]
        starts_T[:1] = True
        return starts_T


def texts(tokenizer: Any) -> tuple[list[str], str | None]:
    """The text of each token, with the space in front of it that it stands for, and what marks words.

    Returns:
        (V,) texts, and the mark: `prefix` (a piece within a word has one, taken off here), `suffix` (a word's last
        piece has one, taken off too), `space` (a word's first piece has one in its text), `whole` (tokens are words),
        or None where nothing tells.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    tokens = _tokens(tokenizer)
    kinds = {part["type"] for name in ("decoder", "pre_tokenizer") for part in _flat(state[name])}
    if "ByteLevel" in kinds:
        decoder = decoders.ByteLevel()
        return [decoder.decode([token]) for token in tokens], "space"
    if "Metaspace" in kinds or model["type"] == "Unigram":
        return [token.replace("\u2581", " ") for token in tokens], "space"
    if prefix := model.get("continuing_subword_prefix"):
        return [token.removeprefix(prefix) for token in tokens], "prefix"
    if suffix := model.get("end_of_word_suffix"):
        return [token.removesuffix(suffix) for token in tokens], "suffix"
    return tokens, "whole" if model["type"] == "WordLevel" else None


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A part of a tokenizer, or the parts that it is a sequence of."""
    if part is None:
        return []
    inner = part.get("decoders") or part.get("pretokenizers")
    return [one for each in inner for one in _flat(each)] if inner else [part]


def words(tokenizer: Any) -> Words:
    """Which tokens begin words.

    Raises:
        UserError: when its tokens do not show that.
    """
    surfaces, mark = texts(tokenizer)
    if mark is None:
        raise UserError(
            "the tokens of this tokenizer do not show where words begin (no ##, no spaces, no suffix); "
            "set data.masking to token"
        )
    marked = [token != surface for token, surface in zip(_tokens(tokenizer), surfaces, strict=True)]
    never, always = np.zeros(len(surfaces), dtype=bool), np.ones(len(surfaces), dtype=bool)
    if mark == "whole":
        found = Words(always, never)
    elif mark == "prefix":
        found = Words(~np.array(marked), never)
    elif mark == "suffix":
        found = Words(never, np.array(marked))
    else:
        opens = [not _WITHIN_WORD.match(surface) for surface in surfaces]
        # A space that is a token of its own belongs to the word behind it.
        closes = [surface != " " and not _WITHIN_WORD.match(surface[-1:]) for surface in surfaces]
        found = Words(np.array(opens), np.array(closes))
    special = special_tokens(tokenizer)
    return Words(found.opens | special, found.closes | special)


def special_tokens(tokenizer: Any) -> Flags:
    """(V,) the tokens that stand for no text of their own: unknown ones, and numbers without a token, among them."""
    found = np.ones(size(tokenizer), dtype=bool)
    found[list(tokenizer.get_vocab().values())] = False
    found[tokenizer.all_special_ids] = True
    return found


def size(tokenizer: Any) -> int:
    """V, one more than the highest id: some tokenizers leave numbers out."""
    count = len(tokenizer)  # grows with every token that is added
    known = _SIZES.get(tokenizer)
    if known is None or known[0] != count:
        known = _SIZES[tokenizer] = count, max(tokenizer.get_vocab().values()) + 1
    return known[1]


def _tokens(tokenizer: Any) -> list[str]:
    """(V,) the tokens as the vocabulary writes them."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(size(tokenizer))))
    return ["" if token is None else token for token in tokens]


@dataclass(frozen=True, eq=False)
class Sentences:
    """Which tokens end sentences.

    Attributes:
        ends: (V,) a sentence ends with this token: 。！？ or the end of a line.
        may_end: (V,) one ends with this token where a word begins behind it: . ! ? and …
        words: which tokens begin words; None takes any for one.
    """

    ends: Flags
    may_end: Flags
    words: Words | None

    def starts(self, ids_T: NDArray[Any]) -> Flags:
        """(T,) whether a sentence begins with each token, as the token before it tells; not with the first."""
        starts_T = np.zeros(len(ids_T), dtype=bool)
        before, behind = ids_T[:-1], ids_T[1:]
        may = self.may_end[before]
        if self.words is not None:
            may = may & self.words.opens[behind]
        # Of "?!" and "..." only the last ends the sentence.
        starts_T[1:] = (self.ends[before] | may) & ~(self.ends[behind] | self.may_end[behind])
        return starts_T


def sentences(tokenizer: Any) -> Sentences:
    """Which tokens end sentences; none where the tokenizer drops the marks."""
    surfaces, mark = texts(tokenizer)
    special = special_tokens(tokenizer)
    ends = np.array([surface.rstrip(" ")[-1:] in _ENDS for surface in surfaces]) & ~special
    may_end = np.array([surface.rstrip(" ")[-1:] in _MAY_END for surface in surfaces]) & ~special
    if mark == "suffix":
        return Sentences(ends, may_end & words(tokenizer).closes, None)
    return Sentences(ends, may_end, None if mark is None else words(tokenizer))


_ENDS = ("。", "！", "？", "\n", "\r")
_MAY_END = (".", "!", "?", "…")
