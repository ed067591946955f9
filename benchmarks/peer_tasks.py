"""What the peer's Trainer learns: one label a text, or one tag a word, as transformers' own recipes do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

Rows = Sequence[Mapping[str, Any]]

_UNKNOWN_LABEL = -100  # the loss ignores it, and no prediction equals it


class PeerTask(ABC):
    """A task of the peer, with the labels of its training rows.

    Args:
        rows: the training rows.
    """

    labels: dict[str, int]

    def __init__(self, rows: Rows) -> None:
        self.labels = {label: index for index, label in enumerate(sorted(self._labels(rows)))}

    @abstractmethod
    def _labels(self, rows: Rows) -> set[str]:
        """The labels that occur."""

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: Any, max_length: int) -> Dataset:
        """Rows as tokens and labels."""

    @abstractmethod
    def model(self, directory: str | Path) -> Any:
        """The model with a new classifier."""

    @abstractmethod
    def collator(self, tokenizer: Any) -> Any:
        """Pads each batch to its longest row."""

    @abstractmethod
    def score(self, predictions: Any, label_ids: Any) -> float:
        """The task's metric."""


class SequencePeer(PeerTask):
    """One label a text: rows with "text" and "label"; accuracy."""

    def _labels(self, rows: Rows) -> set[str]:
        return {row["label"] for row in rows}

    def encode(self, rows: Rows, tokenizer: Any, max_length: int) -> Dataset:
        """Whole texts."""
        encoded = dict(tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length))
        return Dataset.from_dict(encoded | {"labels": [self.labels.get(r["label"], _UNKNOWN_LABEL) for r in rows]})

    def model(self, directory: str | Path) -> Any:
        """A classifier on the first token's state."""
        return AutoModelForSequenceClassification.from_pretrained(directory, num_labels=len(self.labels))

    def collator(self, tokenizer: Any) -> Any:
        """Pads tokens."""
        return DataCollatorWithPadding(tokenizer)

    def score(self, predictions: Any, label_ids: Any) -> float:
        """Accuracy."""
        return float(np.mean(np.argmax(predictions, axis=-1) == label_ids))


class TokenPeer(PeerTask):
    """One tag a word: rows with "tokens" and "tags"; strict F1 of whole entities by seqeval."""

    def _labels(self, rows: Rows) -> set[str]:
        return {tag for row in rows for tag in row["tags"]}

    def encode(self, rows: Rows, tokenizer: Any, max_length: int) -> Dataset:
        """Words as they are; each word's first subword carries its tag."""
        encoded = tokenizer(
            [row["tokens"] for row in rows], is_split_into_words=True, truncation=True, max_length=max_length
        )
        labels = []
        for i, row in enumerate(rows):
            words = encoded.word_ids(i)
            new = [w is not None and w != before for w, before in zip(words, [None, *words[:-1]], strict=True)]
            labels.append(
                [
                    self.labels.get(row["tags"][w], _UNKNOWN_LABEL) if n else -100
                    for w, n in zip(words, new, strict=True)
                ]
            )
        return Dataset.from_dict(dict(encoded) | {"labels": labels})

    def model(self, directory: str | Path) -> Any:
        """A classifier on every token's state."""
        return AutoModelForTokenClassification.from_pretrained(directory, num_labels=len(self.labels))

    def collator(self, tokenizer: Any) -> Any:
        """Pads tokens and tags."""
        return DataCollatorForTokenClassification(tokenizer)

    def score(self, predictions: Any, label_ids: Any) -> float:
        """Strict entity F1; words that truncation cut off are left out."""
        from seqeval.metrics import f1_score
        from seqeval.scheme import IOB2

        names = list(self.labels)
        found, truth = [], []
        for guesses, row in zip(np.argmax(predictions, axis=-1), label_ids, strict=True):
            kept = row != _UNKNOWN_LABEL
            found.append([names[i] for i in guesses[kept]])
            truth.append([names[i] for i in row[kept]])
        return float(f1_score(truth, found, mode="strict", scheme=IOB2, zero_division=0))
