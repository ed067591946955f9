"""How far scores agree with people who marked the words that make the difference.

Legend: U words of a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import binary_average_precision

from llm_arch.interpret.explanation import Explanation, WordShare
from llm_arch.types import UserError

Span = tuple[int, int]
Marked = Mapping[str, Sequence[Span]]  # of texts by name: first character and end of what people marked


@dataclass(frozen=True)
class Plausibility:
    """How plausible the scores of a row are to people (DeYoung et al. 2020).

    Attributes:
        auprc: area under the curve of precision and recall of the words that people marked, in [0, 1].
        f1: F1 of the words with the highest scores, as many as people mark on average, in [0, 1].
    """

    auprc: float
    f1: float


def marked_of(value: Any, texts: Mapping[str, str]) -> dict[str, list[Span]]:
    """What people marked of the texts of a row, from a column of its file.

    Args:
        value: spans `[[start, end], …]` of characters (end exclusive), characters `[3, 4, 5, …]`, or words that stand
            in the text `["awful", …]`; as a list or as JSON. It is about the first text, or a mapping tells of which.
        texts: the texts, by name.

    Raises:
        UserError: it is none of these, or is not within the text.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _unknown(value) from None
    named = value if isinstance(value, Mapping) else {next(iter(texts)): value}
    if strange := [name for name in named if name not in texts]:
        raise UserError(f"marks a text {strange[0]!r}, and the texts are {', '.join(texts)}")
    return {name: _spans(own, texts[name]) for name, own in named.items()}


def _spans(value: Any, text: str) -> list[Span]:
    if not isinstance(value, list):
        raise _unknown(value)
    found: list[Span] = []
    for one in value:
        if isinstance(one, str):
            start = text.lower().find(one.lower())
            span = (start, start + len(one)) if one and start >= 0 else None
        elif isinstance(one, list) and len(one) == 2 and all(type(x) is int for x in one):
            span = (one[0], one[1])
        elif type(one) is int:
            span = (one, one + 1)
        else:
            raise _unknown(value)
        if span is None or not 0 <= span[0] < span[1] <= len(text):
            raise UserError(f"marks {one!r}, which is not within its text of {len(text)} characters")
        found.append(span)
    return found


def _unknown(value: Any) -> UserError:
    return UserError(
        f"marks words as {str(value)[:40]!r}; write spans of characters [[0, 5], …], characters [0, 1, …], or words of "
        "the text"
    )


def plausibility(
    explanations: Sequence[Explanation], marked: Sequence[Marked], scores: Sequence[Sequence[float]] | None = None
) -> list[Plausibility | None]:
    """How plausible each explanation is; None for rows of which people marked no word, or all.

    Args:
        explanations: of rows.
        marked: what people marked of each, by `marked_of`; words of other texts than these don't count.
        scores: others for the words of each, instead of their own.
    """
    own = [[word.score for word in one.words] for one in explanations] if scores is None else scores
    labels = [[_label(word, spans) for word in one.words] for one, spans in zip(explanations, marked, strict=True)]
    pairs = [_known(*pair) for pair in zip(own, labels, strict=True)]
    usable = [(values, wanted) for values, wanted in pairs if 0 < wanted.sum() < len(wanted)]
    share = float(np.mean([wanted.mean() for _, wanted in usable])) if usable else 0.0
    return [_one(*pair, share) if 0 < pair[1].sum() < len(pair[1]) else None for pair in pairs]


def _label(word: WordShare, marked: Marked) -> bool | None:
    if word.text not in marked:
        return None
    return any(word.start < end and start < word.end for start, end in marked[word.text])


def _known(scores: Sequence[float], labels: Sequence[bool | None]) -> tuple[np.ndarray, np.ndarray]:
    both = [(score, label) for score, label in zip(scores, labels, strict=True) if label is not None]
    return np.array([score for score, _ in both]), np.array([label for _, label in both], dtype=bool)


def _one(scores: np.ndarray, labels: np.ndarray, share: float) -> Plausibility:
    top = max(1, round(share * len(scores)))
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[:top]] = True
    # Scores of any size: torchmetrics takes what is outside of [0, 1] for logits and squashes it, ties and all.
    ranks = np.unique(scores, return_inverse=True)[1]
    area = binary_average_precision(torch.tensor((ranks + 1) / (len(scores) + 1)), torch.tensor(labels.astype(int)))
    return Plausibility(float(area), 2 * float((chosen & labels).sum()) / float(chosen.sum() + labels.sum()))
