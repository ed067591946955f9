"""The prediction of heads that choose one label."""

from __future__ import annotations

from dataclasses import dataclass

from llm_arch.types import LabelSpace, Prediction, Target


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


def label_target(labels: LabelSpace, label: str, kind: str = "label") -> Target:
    """The logit of a label, where there is one for each.

    Raises:
        UserError: there is no such label; it lists those there are.
    """
    return Target(f"{kind} {label}", ((0, labels.index(label), 1.0),), wanted=label)
