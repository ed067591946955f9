"""What data with masked tokens shares: the options of masking, and rows with `[MASK]` to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from llm_arch.corpus.masking import Kind, Masking, check_shares
from llm_arch.corpus.pieces import Numbers
from llm_arch.corpus.surfaces import special_tokens, words
from llm_arch.data.corpus import CorpusData
from llm_arch.types import Batch, Prediction, UserError


class MaskedCorpusData(CorpusData):
    """A corpus of which some tokens are masked.

    Args:
        train: see `CorpusData`, as for all arguments up to `test`.
        validation: see `CorpusData`.
        test: see `CorpusData`.
        masking: `token` masks single tokens, `word` whole words, `span` runs of words (SpanBERT; Joshi et al. 2020).
        mask_rate: share of the tokens that are to be guessed, in (0, 1).
        mask_share: share of these that the mask token replaces.
        random_share: share of these that a random token replaces; the rest stays as it is.
        **options: the options of `CorpusData`.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        masking: Kind = "token",
        mask_rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        check_shares(mask_rate, mask_share, random_share)
        self.masking = masking
        self.mask_rate = mask_rate
        self.mask_share = mask_share
        self.random_share = random_share

    def check_tokenizer(self) -> None:
        """There must be a mask token, and words where words are masked."""
        self._mask_token()
        if {"train", "validation", "test"} & self.sources.keys():
            self._masking  # noqa: B018 - complains now, not in a loader

    def _mask_token(self) -> int:
        token = self.tokenizer.mask_token_id
        if token is None:
            raise UserError(
                f"the tokenizer ({self.tokenizer_name}) has no mask token; take one that has (BERT's, or one that "
                f"llm-arch tokenizer trains), or train a causal language model"
            )
        return int(token)

    @cached_property
    def _masking(self) -> Masking:
        return Masking(
            special_tokens(self.tokenizer),
            self._mask_token(),
            None if self.masking == "token" else words(self.tokenizer),
            self.masking,
            self.mask_rate,
            self.mask_share,
            self.random_share,
        )

    def masked(self, ids_T: Numbers, lengths_R: Numbers, columns: Mapping[str, Any]) -> tuple[Numbers, dict[str, Any]]:
        """Tokens with masks, and the labels that tell what stood there.

        Args:
            ids_T: token ids, special tokens included.
            lengths_R: tokens of each row.
            columns: of the rows: `index`, `epoch`, `seed` and `text_bytes`.
        """
        masking = self._masking
        index_R = np.asarray(columns["index"], dtype=np.int64)
        places_M, ids_M = masking(ids_T, lengths_R, index_R, columns["seed"], columns["epoch"])
        changed_T = ids_T.copy()
        changed_T[places_M] = ids_M
        rows = len(lengths_R)
        row_T = np.repeat(np.arange(rows), lengths_R)
        text_R = np.bincount(row_T[~masking.special[ids_T]], minlength=rows)
        share_R = np.bincount(row_T[places_M], minlength=rows) / np.maximum(1, text_R)
        return changed_T, {
            "positions": places_M,
            "targets": ids_T[places_M],
            "text_bytes": (columns["text_bytes"] * share_R).astype(np.float32),
        }

    def asked(self, batch: Batch) -> Tensor:
        """The mask tokens."""
        found = batch.input_ids == self._mask_token()
        return (found if batch.valid is None else found & batch.valid).nonzero()[:, 0]

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """The tokens that may stand at the masks, with their text."""
        if not hasattr(prediction, "fills"):
            return prediction
        fills = [self.named(scores) for scores in prediction.fills]
        return replace(prediction, fills=fills)  # type: ignore[call-arg]

    def tried(self, tokens: Sequence[int]) -> list[int]:
        """An example with one token masked."""
        half = len(tokens) // 2
        return [*tokens[:half], self._mask_token(), *tokens[half + 1 :]]

    def record(self) -> dict[str, Any]:
        """What reading new text needs."""
        return super().record() | {
            "masking": self.masking,
            "mask_rate": self.mask_rate,
            "mask_share": self.mask_share,
            "random_share": self.random_share,
        }
