"""What backbones that are trained from scratch share: token embeddings of any fast tokenizer, saving, loading.

Legend: T tokens, B sequences, V vocabulary, E embedding size, D hidden size.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from llm_arch.backbones.model_vectors import model_vectors, names_a_model
from llm_arch.backbones.output_head import Checkpoint, fitted, head_weights
from llm_arch.backbones.vectors import DRAWN_STD, WordVectors, read_vectors, vocabulary_size
from llm_arch.backbones.vocabulary import PLACEHOLDER, new_rows, not_sized
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import Backbone, Batch, UserError
from llm_arch.untrusted import check_shapes, read_json

CONFIG = "backbone.json"  # a config.json would make transformers warn of a model type that it does not know
WEIGHTS = "backbone.safetensors"


class ScratchBackbone(Backbone):
    """Token embeddings with layers above them that a subclass adds; sequences may be of any length.

    Args:
        tokenizer: a directory, hub id or `package:NAME/FOLDER` of the tokenizer that the data uses.
        vocabulary: V, in place of the tokenizer. Without either, `grow` says it.
        embedding_size: E.
        vectors: a file of pretrained word vectors, which says E itself, or a model whose token embeddings are taken.
        default_size: E where nothing else says it.
        dropout: probability of all dropout in the backbone.

    Attributes:
        kind: name of the architecture in the saved configuration.
    """

    kind: ClassVar[str]
    max_length = None
    _origin: Path | None = None

    def __init__(
        self,
        tokenizer: str | None,
        vocabulary: int | None,
        embedding_size: int | None,
        vectors: str | None,
        default_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if tokenizer is not None and vocabulary is not None:
            raise UserError(
                f"{type(self).__name__} takes either a tokenizer (the one of the data) or a vocabulary_size"
            )
        if vectors is not None and tokenizer is None:
            raise UserError("vectors are found by word, so they need a tokenizer in place of vocabulary_size")
        words = load_tokenizer(tokenizer) if tokenizer is not None else None
        size = vocabulary if words is None else vocabulary_size(words)
        self._sized = size is not None
        size = PLACEHOLDER if size is None else size
        found = _vectors(vectors, words, embedding_size) if vectors is not None else None
        if found is not None:
            embedding_size = found.values_NE.shape[1]
        self.embedding_size = default_size if embedding_size is None else embedding_size
        at_least_one(vocabulary_size=size, embedding_size=self.embedding_size)
        self.words = nn.Embedding(size, self.embedding_size)
        self.dropout = _probability(dropout)
        with torch.no_grad():
            # Tokens without vector are as large as those with one (Kim 2014).
            std = DRAWN_STD if found is None else float(found.values_NE.std())
            self.words.weight.normal_(std=std)
            if found is not None:
                self.words.weight[found.rows_N] = found.values_NE
                rank_zero_only(print)(found.coverage(size))

    @property
    def embeddings(self) -> nn.Embedding:
        """The token embeddings (V, E)."""
        return self.words

    def grow(self, vocabulary: int) -> None:
        """Make room for tokens that were added to the tokenizer; new embeddings lie near the mean of the old ones.

        Where neither tokenizer nor size was given, there are new embeddings for exactly that many.
        """
        old_VE = self.words.weight
        if not self._sized:
            at_least_one(vocabulary_size=vocabulary)
            self.words, self._sized = nn.Embedding(vocabulary, self.embedding_size), True
            nn.init.normal_(self.words.weight, std=DRAWN_STD)
        elif vocabulary > len(old_VE):
            rows = torch.cat([old_VE.detach(), new_rows(old_VE, vocabulary - len(old_VE))])
            self.words = nn.Embedding.from_pretrained(rows, freeze=not old_VE.requires_grad)

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The subclass's own arguments, as JSON-able values."""

    def embed(self, batch: Batch, inputs_embeds: Tensor | None) -> Tensor:
        """(T, E): the embeddings of the tokens, or those given."""
        if not self._sized:
            raise not_sized(self, "its tokenizer or vocabulary_size")
        if inputs_embeds is not None:
            return inputs_embeds
        try:
            embedded_TE: Tensor = self.words(batch.input_ids)
        except IndexError as error:
            raise UserError(
                f"the data has token ids up to {int(batch.input_ids.max())}, but the backbone knows "
                f"{len(self.words.weight)} tokens; give data.tokenizer and the backbone the same tokenizer"
            ) from error
        return embedded_TE

    def drop(self, hidden_TD: Tensor, batch: Batch) -> Tensor:
        """Dropout of the same units at all tokens of a sequence (Gal & Ghahramani 2016)."""
        if not (self.training and self.dropout):
            return hidden_TD
        mask_BD = drop(hidden_TD.new_ones(batch.size, hidden_TD.shape[1]), self.dropout)
        return hidden_TD * mask_BD[batch.segments]

    def set_dropout(self, probability: float) -> None:
        """Use this dropout everywhere."""
        self.dropout = _probability(probability)

    def output_head(self, kind: Literal["masked", "causal"]) -> Mapping[str, Tensor] | None:
        """The language-model head of the model directory that this backbone was loaded from, read when called."""
        found = None if self._origin is None else head_weights(Checkpoint(str(self._origin)), kind)
        return None if found is None else fitted(found, len(self.words.weight))

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the constructor's arguments as JSON and the weights as safetensors."""
        if not self._sized:
            raise not_sized(self, "its tokenizer or vocabulary_size")
        config = {
            "kind": self.kind,
            "vocabulary_size": len(self.words.weight),
            "embedding_size": self.embedding_size,
            "dropout": self.dropout,
            **self.arguments(),
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, directory / WEIGHTS)
        return {}

    @classmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Self:
        """Rebuild from the two files; neither tokenizer nor vectors are read again."""
        config = read_json(directory / CONFIG)
        if config.pop("kind") != cls.kind:
            raise UserError(f"{directory / CONFIG} is not of a {cls.__name__}; fetch or train the model again")
        with torch.device("meta"):  # of whatever size, it takes no memory yet
            wanted = cls(**config).state_dict()
        check_shapes(directory / WEIGHTS, {name: tuple(one.shape) for name, one in wanted.items()}, CONFIG)
        backbone = cls(**config)
        backbone.load_state_dict(load_file(directory / WEIGHTS), strict=True)
        backbone._origin = directory
        return backbone


def _vectors(name: str, tokenizer: Any, size: int | None) -> WordVectors:
    """Vectors of a file, or of a model."""
    if size is not None:
        at_least_one(embedding_size=size)
    if names_a_model(name):
        return model_vectors(name, tokenizer, size)
    found = read_vectors(name, tokenizer)
    width = found.values_NE.shape[1]
    if size not in (None, width):
        raise UserError(
            f"embedding_size is {size}, but the vectors in {name} have {width} numbers; leave embedding_size out"
        )
    return found


def at_least_one(**sizes: int) -> None:
    """Raise a UserError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} must be at least 1, got {size}")


def _probability(dropout: float) -> float:
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be in [0, 1), got {dropout}")
    return dropout
