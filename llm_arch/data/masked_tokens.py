"""Masked language modelling: some tokens of a text are to be guessed from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from llm_arch.corpus.pieces import Numbers, cut
from llm_arch.corpus.rows import PieceRows
from llm_arch.corpus.template import Part, Template
from llm_arch.data.batching import Indices
from llm_arch.data.masks import MaskedCorpusData


class MaskedTokenData(MaskedCorpusData):
    """A corpus for masked language models (BERT; Devlin et al. 2019).

    Each piece has the special tokens that the tokenizer puts around a text. What is masked of it is another thing in
    every epoch, and depends on (seed, epoch, piece) alone; in validation and test it is always the same. Rows to
    predict are texts with the tokenizer's mask token, such as `The [MASK] barks.` Arguments are those of
    `MaskedCorpusData`.
    """

    @cached_property
    def _template(self) -> Template:
        return Template.of(self.tokenizer, 1)

    def piece_rows(self, store: Any, documents: Numbers, training: bool) -> tuple[PieceRows, Indices]:
        """Pieces that leave room for the special tokens."""
        room = self.max_length - self._template.size
        pieces = cut(documents, store.lengths[documents], store.text_bytes[documents], room)
        return PieceRows(store, pieces, training=training), pieces.length + self._template.size

    def piece_arrays(self, columns: Mapping[str, Any]) -> tuple[Numbers, Numbers | None, Numbers, dict[str, Any]]:
        """Masked tokens with special ones around them; `positions` and `targets` tell what is masked."""
        ids, types, lengths = self._template.lay([Part(columns["tokens"], columns["sizes"])])
        ids, labels = self.masked(ids, lengths, columns)
        return ids, types, lengths, labels

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize texts; those without a mask token say nothing to predict."""
        columns, counts = super().encode(rows, labelled)
        mask = self._mask_token()
        faults = [None if mask in ids else self._no_mask for ids in columns["input_ids"]]
        if any(faults):
            columns["fault"] = faults
            columns["input_ids"] = [
                ids if fault is None else [] for ids, fault in zip(columns["input_ids"], faults, strict=True)
            ]
        return columns, counts

    @cached_property
    def _no_mask(self) -> str:
        token = self.tokenizer.mask_token
        return f"has no {token} among its first {self.max_length} tokens; write {token} where a word is to be guessed"
