"""The special tokens that a tokenizer puts around a text, or around and between two, laid around whole batches at once.

Legend: R rows, N tokens of all rows' texts, T tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_arch.types import UserError

Numbers = NDArray[np.int64]


class Part(NamedTuple):
    """One text of each row: its tokens row after row (N,), and how many each row has (R,)."""

    tokens: NDArray[Any]
    sizes: Numbers


@dataclass(frozen=True)
class Template:
    """Special tokens before, between and behind the texts of a row.

    Attributes:
        special: ids in front of each text, and at last those behind all.
        types: token types of these, or None where the tokenizer gives none.
        text_types: token type of each text.
    """

    special: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None = None
    text_types: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many special tokens a row has."""
        return sum(map(len, self.special))

    @classmethod
    def of(cls, tokenizer: Any, texts: int) -> Template:
        """The template of a tokenizer, read off what it makes of a short text.

        Args:
            tokenizer: a fast tokenizer.
            texts: 1, or 2 for pairs.
        """
        encoded = tokenizer(*[[_some_text(tokenizer)]] * texts)
        [encoding] = encoded.encodings
        types = encoded.get("token_type_ids", [None])[0] if texts == 2 else None
        special: list[list[int]] = [[] for _ in range(texts + 1)]
        special_types: list[list[int]] = [[] for _ in range(texts + 1)]
        text_types = [0] * texts
        group = 0
        for place, sequence in enumerate(encoding.sequence_ids):
            if sequence is None:
                special[group].append(encoding.ids[place])
                special_types[group].append(types[place] if types else 0)
            else:
                group = sequence + 1
                text_types[sequence] = types[place] if types else 0
        ids, kinds = (tuple(map(tuple, groups)) for groups in (special, special_types))
        return cls(ids, kinds if types else None, tuple(text_types) if types else ())

    def lay(self, parts: Sequence[Part]) -> tuple[Numbers, Numbers | None, Numbers]:
        """Texts with the special tokens around them.

        Args:
            parts: the first text of each row, and the second.

        Returns:
            ids (T,), token types (T,) or None, tokens of each row (R,).
        """
        lengths_R = sum((part.sizes for part in parts), start=np.full(len(parts[0].sizes), self.size))
        ends_R = np.cumsum(lengths_R)
        place_R = ends_R - lengths_R  # where the next token of each row goes
        ids_T = np.empty(int(ends_R[-1]) if len(ends_R) else 0, dtype=np.int64)
        types_T = None if self.types is None else np.empty_like(ids_T)
        for number, special in enumerate(self.special):
            for i, token in enumerate(special):
                ids_T[place_R] = token
                if types_T is not None and self.types is not None:
                    types_T[place_R] = self.types[number][i]
                place_R = place_R + 1
            if number == len(parts):
                break
            tokens, sizes_R = parts[number]
            place_N = np.arange(len(tokens)) + np.repeat(place_R - (np.cumsum(sizes_R) - sizes_R), sizes_R)
            ids_T[place_N] = tokens
            if types_T is not None:
                types_T[place_N] = self.text_types[number]
            place_R = place_R + sizes_R
        return ids_T, types_T, lengths_R


def _some_text(tokenizer: Any) -> str:
    """A text that has tokens."""
    for text in ("a", "1", ".", *tokenizer.get_vocab()):
        if tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
            return str(text)
    raise UserError("the tokenizer makes no token of any text; name another with --data.tokenizer")
