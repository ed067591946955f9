"""Training rows of which some words are masked, so that a model knows what texts without them are like.

Legend: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_arch.corpus.randomness import key_of, random_bits, uniform
from llm_arch.corpus.surfaces import special_tokens
from llm_arch.types import UserError

# Tokens that can stand for nothing: what users call them, and what tokenizers do. The first that there is is taken.
STAND_INS = {"mask": "mask", "pad": "pad", "unknown": "unk", "end": "eos"}
_USE = 0x6D61736B  # sets these random numbers apart from others of the same seed and epoch


def stand_ins(tokenizer: Any) -> dict[str, int]:
    """The ids of a tokenizer's tokens that can stand for nothing, by what users call them."""
    found = {name: getattr(tokenizer, f"{kind}_token_id", None) for name, kind in STAND_INS.items()}
    return {name: int(token) for name, token in found.items() if token is not None}


class MaskedRows:
    """Masks tokens of some rows: of each a share of its own, anything from none to all (Madsen et al. 2024).

    Which rows and tokens is a function of seed, epoch and row alone. Special tokens stay.

    Args:
        share: of the rows, in (0, 1].
        tokenizer: gives the token that masks: the mask token, or where it has none that of padding, of the unknown or
            of the end.

    Raises:
        UserError: the tokenizer has none of these.
    """

    def __init__(self, share: float, tokenizer: Any) -> None:
        known = stand_ins(tokenizer)
        if not known:
            raise UserError("data.mask_tokens needs a mask token, and this tokenizer has none that could stand for it")
        self.share, self.token = share, next(iter(known.values()))
        self.special = special_tokens(tokenizer)

    def __call__(self, columns: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Columns of rows with masks among their `input_ids`.

        Args:
            columns: of rows, with their `index` and the `epoch`.
            seed: of the run.
        """
        index = np.asarray(columns["index"], dtype=np.int64)
        keys = random_bits(key_of(seed, columns["epoch"], _USE), index)
        masked = uniform(random_bits(keys, np.zeros_like(index))) < self.share
        rates = uniform(random_bits(keys, np.ones_like(index)))
        rows: list[Sequence[int]] = list(columns["input_ids"])
        for row in masked.nonzero()[0].tolist():
            ids_T = np.asarray(rows[row], dtype=np.int64)
            chance_T = uniform(random_bits(keys[row : row + 1], np.arange(2, 2 + len(ids_T))))
            rows[row] = np.where((chance_T < rates[row]) & ~self.special[ids_T], self.token, ids_T).tolist()
        return {**columns, "input_ids": rows}
