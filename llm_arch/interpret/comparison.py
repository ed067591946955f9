"""Whether two models say the same for the same reasons, such as one before and after it was compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.classification import binary_calibration_error

from llm_arch.inference.directory import Model, load
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret.asked import Wanted
from llm_arch.interpret.explainer import Explainer, unserved
from llm_arch.interpret.explanation import Explanation
from llm_arch.interpret.faithfulness import Faithfulness, FaithfulnessTest
from llm_arch.interpret.interval import Interval, interval
from llm_arch.interpret.ranks import spearman
from llm_arch.types import Prediction, UserError

_BINS = 15  # of calibration; Guo et al. 2017
_NUMBERS = [field.name for field in fields(Faithfulness)]


@dataclass(frozen=True)
class Beside:
    """A number of two models.

    Attributes:
        first: of the first.
        second: of the second.
        difference: the second less the first, row by row; None where the number is none of single rows.
    """

    first: Interval | float
    second: Interval | float
    difference: Interval | float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {name: one if isinstance(one, float) else one.to_dict() for name, one in vars(self).items()}


@dataclass(frozen=True)
class Changed:
    """A row as two models explain it.

    Attributes:
        correlation: Spearman's ρ of the scores of the words that both have read; None where either has no ranks.
        first: the explanation of the first.
        second: that of the second, of the same target.
    """

    correlation: float | None
    first: Explanation
    second: Explanation


@dataclass(frozen=True)
class Comparison:
    """Two models beside one another.

    Attributes:
        names: of the two.
        method: by which both are explained.
        note: why it is another than what was asked for; empty where it is not.
        correlation: Spearman's ρ of the scores of each row's words; None where no row has one.
        same: the share of the rows of which both predict the same, in [0, 1].
        faithfulness: by the names of its numbers; empty where it was not tested.
        calibration: expected calibration error, in [0, 1]; None without labels or probabilities of labels.
        rows: all rows, those whose explanations changed most first.
    """

    names: tuple[str, str]
    method: str
    note: str
    correlation: Interval | None
    same: float
    faithfulness: dict[str, Beside]
    calibration: Beside | None
    rows: list[Changed]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without the rows."""
        return {
            "against": self.names[0],
            "method": self.method,
            "note": self.note,
            "rows": len(self.rows),
            "correlation": None if self.correlation is None else self.correlation.to_dict(),
            "same_predictions": self.same,
            "faithfulness": {name: one.to_dict() for name, one in self.faithfulness.items()},
            "calibration_error": None if self.calibration is None else self.calibration.to_dict(),
        }


def compare(
    first: str | Path | Model,
    second: str | Path | Model,
    rows: Iterable[Mapping[str, Any]],
    *,
    method: str = "integrated_gradients",
    target: str | None = None,
    against: str | None = None,
    faithfulness: FaithfulnessTest | None = None,
    trust: tuple[str, ...] = (),
    advance: Callable[[float], None] = lambda share: None,
    **settings: Any,
) -> Comparison:
    """Explain the same rows by two models.

    Both are asked about what the first predicts, and by one method: where it serves only one of the two, such as where
    the other is exported and has no gradients, by occlusion.

    Args:
        first: a model directory, or a loaded `Model`.
        second: another, with a head of the same kind.
        rows: mappings with the columns that both were trained on; with labels, calibration is compared too.
        method: name of a method, see `METHODS`.
        target: what to explain; None for what the first model predicts of each row.
        against: what else could have been.
        faithfulness: tests the scores of both; None to leave it out.
        trust: modules outside this package that the models may use.
        advance: told which share of the work is done, in [0, 1].
        **settings: those of the method.

    Raises:
        UserError: the models are of different tasks, or a row can't be used.
    """
    models = [one if isinstance(one, Model) else load(one, trust=trust) for one in (first, second)]
    if type(models[0].head) is not type(models[1].head):
        kinds = " and ".join(f"{one.directory} is a {type(one.head).__name__}" for one in models)
        raise UserError(f"{kinds}; compare models of one task")
    rows, note = list(rows), ""
    if reason := next(filter(None, (unserved(one, method) for one in models)), None):
        method, note = "occlusion", f"both by occlusion: {reason.partition('; take')[0]}"
        settings = {name: value for name, value in settings.items() if name == "baseline"}  # the others are its own
    explainers = [Explainer(one, method=method, faithfulness=faithfulness, **settings) for one in models]
    one: list[Explanation] = []
    other: list[Explanation] = []
    for explainer, found in zip(explainers, (one, other), strict=True):
        wanted: Wanted = [row.wanted for row in one] if one and target is None else target
        for row in explainer.stream(rows, target=wanted, against=against):
            found.append(row)
            advance((len(one) + len(other)) / (2 * len(rows)))
    both = [Changed(correlation_of(*pair), *pair) for pair in zip(one, other, strict=True)]
    return Comparison(
        (str(models[0].directory), str(models[1].directory)),
        method,
        note,
        interval(row.correlation for row in both),
        sum(row.first.predicted == row.second.predicted for row in both) / max(1, len(both)),
        _faithfulness(one, other),
        _calibration(models, rows),
        sorted(both, key=lambda row: 2.0 if row.correlation is None else row.correlation),
    )


def correlation_of(first: Explanation, second: Explanation) -> float | None:
    """Spearman's ρ of the words that both have."""
    mine, theirs = ({(w.text, w.start, w.end): w.score for w in one.words} for one in (first, second))
    shared = [place for place in mine if place in theirs]
    return spearman([mine[place] for place in shared], [theirs[place] for place in shared])


def _faithfulness(first: Sequence[Explanation], second: Sequence[Explanation]) -> dict[str, Beside]:
    found: dict[str, Beside] = {}
    for name in _NUMBERS:
        pairs = [
            (getattr(a.faithfulness.own, name), getattr(b.faithfulness.own, name))
            for a, b in zip(first, second, strict=True)
            if a.faithfulness and b.faithfulness
        ]
        known = [pair for pair in pairs if None not in pair]
        each = [interval(column) for column in zip(*known, strict=True)]
        change = interval(b - a for a, b in known)
        if change is not None and each[0] is not None and each[1] is not None:
            found[name] = Beside(each[0], each[1], change)
    return found


def _calibration(models: Sequence[Model], rows: Sequence[Mapping[str, Any]]) -> Beside | None:
    errors = [calibration_error(model, rows) for model in models]
    if errors[0] is None or errors[1] is None:
        return None
    return Beside(errors[0], errors[1], errors[1] - errors[0])


def calibration_error(model: Model, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The expected calibration error (Guo et al. 2017) of what a model predicts of rows with labels, in 15 bins.

    None where rows have no labels, or the model gives no label with its probability.
    """
    labels = [name for name, always in model.data.columns.items() if not always]
    if len(labels) != 1 or not all(row.get(labels[0]) not in (None, "") for row in rows):
        return None
    predictor = Predictor(model)
    found: list[Prediction] = list(predictor.stream(rows))
    known = [(getattr(one, "label", None), getattr(one, "score", None)) for one in found]
    if not rows or any(label is None or score is None for label, score in known):
        return None
    right = torch.tensor([str(row[labels[0]]) == label for row, (label, _) in zip(rows, known, strict=True)])
    sure = torch.tensor([float(score) for _, score in known])  # type: ignore[arg-type]
    return float(binary_calibration_error(sure, right.long(), n_bins=_BINS))
