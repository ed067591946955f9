"""Which new rows are worth keeping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_arch.augmentation.rows import Columns, TextRow
from llm_arch.augmentation.similarity import TextIndex
from llm_arch.heads.classification import LabelSetPrediction
from llm_arch.heads.labels import LabelPrediction
from llm_arch.inference.directory import Model
from llm_arch.inference.predictor import Predictor
from llm_arch.types import Prediction, UserError


class Filter(ABC):
    """Judges new rows, each by itself."""

    @abstractmethod
    def __call__(self, rows: Sequence[TextRow]) -> list[str | None]:
        """Why each row is dropped, in a few words that are counted by; None for a row that stays.

        Args:
            rows: new rows.
        """


class Leaks(Filter):
    """Drops rows whose text also stands in validation or test rows, whatever its case and punctuation.

    Args:
        rows: the texts of those rows, one or several a row.
        near: see `TextIndex`; None drops equal texts alone.
    """

    def __init__(self, rows: Iterable[Sequence[str]], near: float | None = None) -> None:
        self._index = TextIndex(rows, near)

    def __call__(self, rows: Sequence[TextRow]) -> list[str | None]:
        """Rows that would leak."""
        found = [self._index.holds(row.texts) for row in rows]
        return [kind and f"{kind} of validation or test rows" for kind in found]


class Agreement(Filter):
    """Drops rows to which a classifier gives another label than they have (Anaby-Tavor et al. 2020).

    Args:
        model: a model directory of a classifier, or a loaded `Model`.
        min_score: the least probability of the label, in [0, 1].
        label_column: column of the label in rows.
        device: where to run; None for a GPU if there is one.
        trust: modules outside this package that the model may use.

    Raises:
        UserError: when the model does not classify.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        min_score: float = 0.0,
        label_column: str = Columns().label,
        device: str | None = None,
        trust: tuple[str, ...] = (),
    ) -> None:
        if not 0 <= min_score <= 1:
            raise UserError(f"min_score must be in [0, 1], got {min_score}")
        self.predictor = Predictor(model, device=device, trust=trust)
        self.min_score, self.label_column = min_score, label_column
        data = self.predictor.model.data
        if data.columns.get(label_column, True):
            raise UserError(
                f"{self.predictor.model.directory} was trained on the columns {', '.join(data.columns)}, of which "
                f"{label_column!r} is no label; name a model that classifies these rows"
            )

    def __call__(self, rows: Sequence[TextRow]) -> list[str | None]:
        """Rows that are taken for something else, or hardly for what they are."""
        found = self.predictor.stream(row.values for row in rows)
        return [self._judged(row, prediction) for row, prediction in zip(rows, found, strict=True)]

    def _judged(self, row: TextRow, prediction: Prediction) -> str | None:
        wanted = self._labels(row)
        if isinstance(prediction, LabelPrediction):
            agrees, score = wanted == {prediction.label}, prediction.score
        elif isinstance(prediction, LabelSetPrediction):
            agrees = wanted == set(prediction.labels)
            score = min((prediction.scores[label] for label in prediction.labels), default=1.0)
        else:
            head = type(self.predictor.model.head).__name__
            raise UserError(
                f"{self.predictor.model.directory} holds a {head}, which gives no label to agree with; name a "
                "model of text classification"
            )
        if not agrees:
            return "another label by the classifier"
        return None if score >= self.min_score else f"score below {self.min_score:g}"

    def _labels(self, row: TextRow) -> set[str]:
        """As the model's own data reads them."""
        cell = row.values.get(self.label_column)
        delimiter = getattr(self.predictor.model.data, "label_delimiter", None)
        if isinstance(cell, list):
            return {str(label).strip() for label in cell}
        parts = str("" if cell is None else cell).split(delimiter) if delimiter else ["" if cell is None else str(cell)]
        return {part.strip() for part in parts} - {""}
