"""Causal language modelling: every token is to be predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from llm_arch.corpus.pieces import Numbers, cut
from llm_arch.corpus.rows import PieceRows
from llm_arch.data.batching import Indices
from llm_arch.data.corpus import CorpusData
from llm_arch.data.origins import NOWHERE, Origins, places_of
from llm_arch.types import Batch, Prediction


class NextTokenData(CorpusData):
    """A corpus for causal language models (GPT-2; Radford et al. 2019).

    A document begins with the tokenizer's beginning-of-text token and ends with its end-of-text token, where it has
    such. A piece gives a cell for each token but its last, and the next piece goes on with that one: so every token is
    predicted exactly once, the first too where a token is in front of it.

    Args:
        train: see `CorpusData`, as for all arguments up to `test`.
        validation: see `CorpusData`.
        test: see `CorpusData`.
        document_start: `bos` puts the beginning-of-text token (or [CLS]) in front of each document, `none` nothing.
        document_end: `eos` puts the end-of-text token (or [SEP]) behind each document, `none` nothing.
        **options: the options of `CorpusData`.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        document_start: Literal["bos", "none"] = "bos",
        document_end: Literal["eos", "none"] = "eos",
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        self.document_start = document_start
        self.document_end = document_end

    @property
    def _first(self) -> int | None:
        """The token in front of every document."""
        tokenizer = self.tokenizer
        return None if self.document_start == "none" else _given(tokenizer.bos_token_id, tokenizer.cls_token_id)

    @property
    def _last(self) -> int | None:
        """The token behind every document."""
        tokenizer = self.tokenizer
        return None if self.document_end == "none" else _given(tokenizer.eos_token_id, tokenizer.sep_token_id)

    def piece_rows(self, store: Any, documents: Numbers, training: bool) -> tuple[PieceRows, Indices]:
        """Pieces of a token more than they have cells."""
        first, last = self._first, self._last
        documents = documents[store.lengths[documents] > 0]
        lengths = store.lengths[documents] + (first is not None) + (last is not None)
        pieces = cut(documents, lengths, store.text_bytes[documents], self.max_length, overlap=1)
        return PieceRows(store, pieces, training=training, first=first, last=last), pieces.length - 1

    def piece_arrays(self, columns: Mapping[str, Any]) -> tuple[Numbers, Numbers | None, Numbers, dict[str, Any]]:
        """All tokens but the last of each piece, and as `targets` all but the first."""
        tokens, sizes = columns["tokens"], columns["sizes"]
        ends = np.cumsum(sizes)
        labels = {
            "targets": np.delete(tokens, ends - sizes),
            "text_bytes": columns["text_bytes"].astype(np.float32),
        }
        return np.delete(tokens, ends - 1), None, sizes - 1, labels

    def asked(self, batch: Batch) -> Tensor:
        """The last token of each row: what is to come next."""
        return batch.starts + batch.lengths - 1

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize texts as the beginnings of documents; of what is too long the end stays, where the text goes on."""
        first = [] if self._first is None else [self._first]
        texts = [self.texts(values)[0] for values in rows]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        room = self.max_length - len(first)
        ids = [[*first, *tokens[-room:]] if tokens else [] for tokens in encoded]
        truncated = sum(len(tokens) > room for tokens in encoded)
        return {"input_ids": ids, "token_type_ids": [None] * len(ids)}, {"truncated": truncated}

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """Of what is too long the end, as `encode` does."""
        text = self.texts(values)[0]
        (encoding,) = self.tokenizer([text], add_special_tokens=False, return_attention_mask=False).encodings
        first = [] if self._first is None else [NOWHERE]
        places = places_of(encoding)[-(self.max_length - len(first)) :]
        return Origins({self.text_column: text}, [*first, *places])

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """The tokens that may come next, with their text."""
        if not hasattr(prediction, "tokens"):
            return prediction
        return replace(prediction, tokens=self.named(prediction.tokens))  # type: ignore[call-arg]

    def record(self) -> dict[str, Any]:
        """What reading new text needs."""
        return super().record() | {"document_start": self.document_start, "document_end": self.document_end}


def _given(*tokens: int | None) -> int | None:
    """The first that there is."""
    return next((token for token in tokens if token is not None), None)
