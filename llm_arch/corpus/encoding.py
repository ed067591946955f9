"""A block → token ids and what is kept of each document.

Worker processes import this: numpy and `tokenizers`, no torch. Legend: T tokens, N documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llm_arch.corpus.deduplicate import BANDS, bands
from llm_arch.corpus.parsing import Block, Document, Fault, parse

# Characters encoded at a time: what `tokenizers` builds takes a hundred bytes and more of memory a token, and small
# batches stay in the processor's cache. A text is cut only beyond the second number.
AT_ONCE, LONGEST = 1 << 17, 1 << 20


class Encoded(NamedTuple):
    """The documents of a block.

    Attributes:
        ids: (T,) token ids, document after document.
        documents: (N, 3 or more) of each document its tokens, the UTF-8 bytes and the key of its text, and its bands
            where near-duplicates are looked for.
        faults: what was no document.
    """

    ids: NDArray[Any]
    documents: NDArray[np.int64]
    faults: list[Fault]


class Encoder:
    """Encodes blocks with a tokenizer.

    Special tokens are not added, and where a text spells one out it is text like any other: no corpus can put a [MASK]
    or an end of text into the training.

    Args:
        tokenizer: as JSON, like `tokenizer.json`.
        dtype: the integer type of ids.
        near: also compute what `Deduplicator` needs to find near-duplicates.
    """

    def __init__(self, tokenizer: str, dtype: str, near: bool = False) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        self.dtype = np.dtype(dtype)
        self.near = near

    def __call__(self, block: Block) -> Encoded:
        """Token ids of a block's documents."""
        documents, faults = parse(block)
        encodable: list[tuple[Document, bytes]] = []
        for document in documents:
            try:
                encodable.append((document, document.text.encode()))
            except UnicodeEncodeError:
                faults.append(Fault(document.source, document.number, "half a character (a lone surrogate)"))
        ids, lengths = self._ids([document.text for document, _ in encodable])
        kept = np.zeros((len(encodable), columns(self.near)), np.int64)
        kept[:, 0] = lengths
        kept[:, 1] = [len(raw) for _, raw in encodable]
        kept[:, 2] = [key(raw) for _, raw in encodable]
        if self.near:
            kept[:, 3:] = bands([document.text for document, _ in encodable])
        for number in np.flatnonzero(kept[:, 0] == 0):
            document = encodable[number][0]
            faults.append(Fault(document.source, document.number, "no tokens"))
        return Encoded(ids, kept[kept[:, 0] > 0], faults)

    def _ids(self, texts: list[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of all texts, and how many each has."""
        lengths = np.zeros(len(texts), np.int64)
        found: list[NDArray[Any]] = []
        for owners, parts in _batches(texts):
            for owner, encoding in zip(
                owners, self.tokenizer.encode_batch_fast(parts, add_special_tokens=False), strict=True
            ):
                ids = np.array(encoding.ids, self.dtype)
                lengths[owner] += len(ids)
                found.append(ids)
        return np.concatenate(found) if found else np.zeros(0, self.dtype), lengths


def columns(near: bool) -> int:
    """Numbers kept of each document."""
    return 3 + BANDS * near


def key(text: bytes) -> int:
    """A hash of a text, 64 bits with sign; among 10⁸ texts two collide with a chance of 1 in 3,700."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


def _batches(texts: list[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Texts, or parts of long ones, with the number of the text, some at a time."""
    owners: list[int] = []
    parts: list[str] = []
    held = 0
    for owner, text in enumerate(texts):
        for part in cut(text, LONGEST):
            if parts and held + len(part) > AT_ONCE:
                yield owners, parts
                owners, parts, held = [], [], 0
            owners.append(owner)
            parts.append(part)
            held += len(part)
    if parts:
        yield owners, parts


def cut(text: str, limit: int) -> Iterator[str]:
    """A text in parts of at most `limit` characters, whose tokens are those of the whole where the tokenizer allows it.

    Parts begin with the single space between two words, which byte-level tokenizers keep with the word behind it and
    others drop; only those that put a space before a text themselves can tell, by a token a part. Where there is no
    such space, parts begin behind the end of a line, or anywhere.
    """
    start = 0
    while len(text) - start > limit:
        end = _border(text, start, start + limit)
        yield text[start:end]
        start = end
    yield text[start:]


def _border(text: str, start: int, end: int) -> int:
    place = end
    while (place := text.rfind(" ", start + 1, place)) > start + 1:
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
    line = text.rfind("\n", start, end) + 1
    return line if line > start else end
