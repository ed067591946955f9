"""The prediction of heads that choose one label."""

from __future__ import annotations

from dataclasses import dataclass

from llm_arch.types import Prediction


@dataclass(frozen=True)
class LabelPrediction(Prediction):
    """A single label with its probability, and every label's.

    Attributes:
        label: the most probable label.
        score: its probability.
        scores: probability of every label.
    """

    label: str
    score: float
    scores: dict[str, float]
