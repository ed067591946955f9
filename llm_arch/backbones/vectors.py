"""Pretrained word vectors (GloVe, word2vec or fastText, as text files) for the tokens of a tokenizer.

Legend: V vocabulary, N tokens that have a vector, E its width.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor

from llm_arch.types import UserError

_WORD_START = "Ġ▁"  # byte-level BPE and SentencePiece mark where a word begins
_CONTINUATION = "##"  # WordPiece marks where none does


DRAWN_STD = 0.1  # of embeddings that were not given


class WordVectors(NamedTuple):
    """The vectors of a file that belong to tokens.

    Attributes:
        rows_N: the ids of the tokens that have one, ascending.
        values_NE: their vectors.
        read: how many vectors the file holds.
        name: the file.
    """

    rows_N: Tensor
    values_NE: Tensor
    read: int
    name: str

    def coverage(self, vocabulary: int) -> str:
        """One line on how many of `vocabulary` tokens have a vector."""
        found, size = self.values_NE.shape
        return (
            f"word vectors: {found:,} of {vocabulary:,} tokens ({found / vocabulary:.1%}) "
            f"have one of the {self.read:,} vectors of {size} numbers in {self.name}"
        )


def vocabulary_size(tokenizer: Any) -> int:
    """V: one more than the largest id that a fast tokenizer gives."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def read_vectors(name: str, tokenizer: Any) -> WordVectors:
    """The vectors of a text file for the tokens of a tokenizer, read line by line.

    A line is a word and its numbers, separated by single spaces; a first line of two whole numbers (how many, how
    wide) is skipped. A token has the vector of the word it stands for: `Ġword` and `▁word` stand for `word`, special
    tokens and WordPiece's `##piece` for none. A word that is no token as it stands is looked up as the tokenizer's
    normalizer writes it (lower case, without accents), for tokens that no other word is equal to. Of several words
    for a token the first counts: such files begin with the frequent ones. The numbers of words that no token stands
    for are counted, not read.

    Args:
        name: the file; `.gz` is unpacked while reading.
        tokenizer: a fast tokenizer.

    Raises:
        UserError: when the file can't be read, a line is malformed, or no word is a token.
    """
    rows = _words(tokenizer)
    normalizer = tokenizer.backend_tokenizer.normalizer
    equal: dict[int, np.ndarray] = {}
    normalized: dict[int, np.ndarray] = {}
    size = read = 0
    for line, text in enumerate(_lines(name), start=1):
        if line == 1 and (header := _header(text)):
            size = header
            continue
        size = size or text.count(" ")
        parts = _split(text, size)
        if parts is None:
            raise _malformed(name, line, text, size)
        word, numbers = parts
        read += 1
        found, places = equal, rows.get(word, ())
        if not places and normalizer is not None:
            found, places = normalized, rows.get(_bare(normalizer.normalize_str(word)), ())
        for row in places:
            if row not in found:
                found[row] = _vector(name, line, text, numbers)
    vectors = normalized | equal
    if not vectors:
        raise UserError(
            f"{name}: none of its {read:,} words is a token; take vectors of the language of the tokenizer, "
            "or leave vectors out"
        )
    ids = sorted(vectors)
    return WordVectors(torch.tensor(ids), torch.from_numpy(np.stack([vectors[i] for i in ids])), read, name)


def _words(tokenizer: Any) -> dict[str, list[int]]:
    """Every word that tokens stand for, with their ids."""
    special = set(tokenizer.all_special_tokens)
    rows: dict[str, list[int]] = {}
    for token, row in tokenizer.get_vocab().items():
        if token in special or (token.startswith(_CONTINUATION) and token != _CONTINUATION):
            continue
        # Byte-level BPE writes bytes as letters of its own, and the tokenizer knows how to undo that. Where words are
        # marked, a token without mark counts too: it is a word after a bracket or at the start of a text.
        word = _bare(tokenizer.convert_tokens_to_string([token]))
        if word:
            rows.setdefault(word, []).append(row)
    return rows


def _bare(word: str) -> str:
    return word.strip().lstrip(_WORD_START)


def _lines(name: str) -> Iterator[str]:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"vectors: {name}: no such file; check the path, which counts from {Path.cwd()}")
    try:
        with _open(path) as file:
            for line in file:
                yield line.rstrip(" \r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name} is damaged ({error}); fetch it again") from error


def _open(path: Path) -> TextIO:
    # Words may hold characters that end a line elsewhere, and bytes that are not UTF-8: they are no tokens then.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="\n")
    return path.open(encoding="utf-8", errors="replace", newline="\n")


def _header(text: str) -> int:
    """How wide the vectors are if this is word2vec's first line, else 0."""
    fields = text.split()
    return int(fields[1]) if len(fields) == 2 and all(field.isdecimal() for field in fields) else 0


def _split(text: str, size: int) -> tuple[str, str] | None:
    """Word and numbers, or None where these are not `size`; GloVe's largest file has words that hold spaces."""
    spaces = text.count(" ")
    if not size or spaces < size:
        return None
    if spaces == size:
        word, _, numbers = text.partition(" ")
        return (word, numbers) if word else None
    word = text.rsplit(" ", size)[0]
    try:
        float(word.rpartition(" ")[2])
    except ValueError:
        return word, text[len(word) + 1 :]
    return None  # a number too many


def _vector(name: str, line: int, text: str, numbers: str) -> np.ndarray:
    fields = numbers.split(" ")
    try:
        vector_E = np.array(fields, dtype=np.float32)
    except ValueError:
        raise _malformed(name, line, text, len(fields)) from None
    if not np.isfinite(vector_E).all():
        raise _malformed(name, line, text, len(fields))
    return vector_E


def _malformed(name: str, line: int, text: str, size: int) -> UserError:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return UserError(
        f"{name}, line {line}: expected a word and {size or 'its'} finite numbers, separated by single spaces, "
        f"got {shown!r}; take vectors in the text format of GloVe or word2vec"
    )
