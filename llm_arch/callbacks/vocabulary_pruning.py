"""A vocabulary of what the training rows use: the other tokens' embeddings go before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import pyarrow.compute
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from llm_arch.compression.vocabulary import prune_tokenizer, tokens_to_keep
from llm_arch.data.batching import Indices
from llm_arch.data.corpus import CorpusData
from llm_arch.data.module import DataModule
from llm_arch.types import UserError


class VocabularyPruning(L.Callback):
    """Leaves out the tokens that no training row has, of embeddings, tokenizer and language-model heads.

    Training rows have the same tokens as before, under other numbers, and so the same predictions, which is checked.
    Other texts may have words that now are several tokens. Special tokens and single characters or bytes stay. It
    happens before the first step, and in a run without steps too; the saved tokenizer is the smaller one.

    Args:
        also: more rows whose tokens stay, as `data.predict` takes them: texts like those to come, no labels needed.
    """

    compression = "vocabulary pruning"  # how a model's record and card call it
    renumbers_tokens = True

    def __init__(self, also: Sequence[str] = ()) -> None:
        self.also = tuple(also)
        self.kept: torch.Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Prune before there is an optimizer, so that a resumed run has the same sizes.

        Raises:
            UserError: the data has no rows of texts, or its tokenizer or the backbone can't be pruned.
        """
        if stage != "fit":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DataModule) or isinstance(data, CorpusData):
            raise UserError(
                "the vocabulary is pruned to that of a data module's training rows, and a corpus to pretrain on has "
                "none; prune when the model is fine-tuned, or afterwards by llm-arch compress"
            )
        before, train = _tokens(data), data.split("train")
        others = [_ids(data.load_source(name, labelled=False)[0]) for name in self.also]
        self.kept = kept = tokens_to_keep(data.tokenizer, np.unique(np.concatenate([before, *others])).tolist())
        vocabulary = data.vocabulary
        if len(kept) == vocabulary:
            rank_zero_warn(f"vocabulary pruning: all {vocabulary:,} tokens are used, and none is left out")
            return
        pl_module.backbone.keep_vocabulary(kept)
        pl_module.head.keep_vocabulary(kept)
        data.use_tokenizer(prune_tokenizer(data.tokenizer, kept))
        after = _tokens(data)
        if len(after) != len(before) or (kept.numpy()[after] != before).any():
            raise UserError(
                f"vocabulary pruning: {train.source} has other tokens by the pruned tokenizer; leave this callback out"
            )
        pl_module.records["vocabulary"] = {"before": vocabulary, "after": len(kept)}
        rank_zero_info(f"vocabulary: {vocabulary:,} tokens -> {len(kept):,}; {train.source} has the same as before")

    def state_dict(self) -> dict[str, Any]:
        """Which tokens were kept, by their old numbers."""
        return {"kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See that it is the same ones.

        Raises:
            UserError: it is others.
        """
        if self.kept is None or not torch.equal(state_dict["kept"], self.kept):
            raise UserError(
                "the checkpoint is of a run that kept other tokens; resume with the rows and the config.yaml of its run"
            )


def _tokens(data: DataModule) -> Indices:
    """The tokens of all training rows, one row after another."""
    train = data.split("train")
    return _ids(train.rows, train.chosen)


def _ids(rows: Any, chosen: Indices | None = None) -> Indices:
    column = rows.data.column("input_ids")
    column = column if chosen is None else column.take(chosen)
    return pyarrow.compute.list_flatten(column).to_numpy().astype(np.int64)
