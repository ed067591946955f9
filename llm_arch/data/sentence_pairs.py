"""Pairs of texts: whether the second follows the first, or in which order they come."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from llm_arch.corpus.pairs import SHORTEST, Objective, PairRows
from llm_arch.corpus.pieces import Numbers, cut
from llm_arch.corpus.rows import PieceRows
from llm_arch.corpus.surfaces import sentences
from llm_arch.corpus.template import Part, Template
from llm_arch.data.batching import Indices
from llm_arch.data.cells import text_fault
from llm_arch.data.masks import MaskedCorpusData
from llm_arch.types import Batch, LabelSpace, UserError

_LABELS = {"nsp": ("next", "random"), "sop": ("in_order", "swapped")}


class SentencePairData(MaskedCorpusData):
    """A corpus for next-sentence prediction or sentence-order prediction, with masked tokens unless told otherwise.

    A piece is cut in two where a sentence begins. In half of the pairs the second text then comes from another document
    (never one of equal text), or the two change places; which, depends on (seed, epoch, piece) alone. Documents of a
    single token have no place in it. Rows to predict have a second text.

    Args:
        train: see `MaskedCorpusData`, as for all arguments up to `test`.
        validation: see `MaskedCorpusData`.
        test: see `MaskedCorpusData`.
        objective: `nsp`: does the second text follow the first (BERT; Devlin et al. 2019)? `sop`: are they in order
            (ALBERT; Lan et al. 2020)?
        masked: mask tokens too, as BERT's pretraining did.
        text_pair_column: column of the second text in rows to predict.
        **options: the options of `MaskedCorpusData`.
    """

    column_options = "--data.text_column, --data.text_pair_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        objective: Objective = "nsp",
        masked: bool = True,
        text_pair_column: str = "text_pair",
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        if objective not in _LABELS:
            raise UserError(f"data.objective must be nsp or sop, got {objective!r}")
        self.objective = objective
        self.with_masks = masked
        self.text_pair_column = text_pair_column

    def check_tokenizer(self) -> None:
        """There must be a mask token where tokens are masked."""
        if self.with_masks:
            super().check_tokenizer()

    @cached_property
    def _template(self) -> Template:
        return Template.of(self.tokenizer, 2)

    def piece_rows(self, store: Any, documents: Numbers, training: bool) -> tuple[PieceRows, Indices]:
        """Pieces that can be cut in two, and leave room for the special tokens."""
        room = self.max_length - self._template.size
        if room < 2 * SHORTEST:
            least = 2 * SHORTEST + self._template.size
            raise UserError(f"data.max_length is {self.max_length}, too short for pairs; set it to {least} or more")
        pieces = cut(documents, store.lengths[documents], store.text_bytes[documents], room, shortest=SHORTEST)
        if self.objective == "nsp" and len(pieces) and len(np.unique(store.keys[np.unique(pieces.document)])) < 2:
            split, more = ("training", "") if training else ("validation or test", "cut off more of them, ")
            raise UserError(
                f"{', '.join(store.manifest['sources'])}: a {split} split has a single document, and no other to take "
                f"a wrong sentence from; name more documents, {more}or set data.objective to sop"
            )
        rows = PairRows(store, pieces, training=training, objective=self.objective, sentences=self._sentences)
        return rows, pieces.length + self._template.size

    @cached_property
    def _sentences(self) -> Any:
        return sentences(self.tokenizer)

    def piece_arrays(self, columns: Mapping[str, Any]) -> tuple[Numbers, Numbers | None, Numbers, dict[str, Any]]:
        """Pairs with special tokens; `label` 1 for those that were made wrong, and the labels of masked tokens."""
        pair = Part(columns["tokens"], columns["sizes"]), Part(columns["second_tokens"], columns["second_sizes"])
        ids, types, lengths = self._template.lay(pair)
        labels = {"label": columns["label"]}
        if self.with_masks:
            ids, guessed = self.masked(ids, lengths, columns)
            labels |= guessed
        return ids, types, lengths, labels

    @cached_property
    def label_space(self) -> LabelSpace:
        """What a pair can be."""
        return LabelSpace(_LABELS[self.objective])

    # Rows to predict

    def asked(self, batch: Batch) -> Tensor:
        """The mask tokens, where some were learnt from; the pairs themselves are asked about in any case."""
        return super().asked(batch) if self.with_masks else batch.starts[:0]

    @property
    def columns(self) -> dict[str, bool]:
        """Both texts."""
        return {self.text_column: True, self.text_pair_column: True}

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The texts as they were."""
        return {"text": pa.string(), "text_pair": pa.string()}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells."""
        return text_fault(values, (self.text_column, self.text_pair_column))

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """Both texts."""
        return values[self.text_column], values[self.text_pair_column]

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """Both texts."""
        return {"text": values[self.text_column], "text_pair": values[self.text_pair_column]}

    def record(self) -> dict[str, Any]:
        """What reading new text needs."""
        return super().record() | {
            "objective": self.objective,
            "masked": self.with_masks,
            "text_pair_column": self.text_pair_column,
        }
