"""Rows that are made of predictions say what was predicted, and are rows to train on."""

from __future__ import annotations

from typing import Any

import pytest

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.code_generation import CodeGenerationData
from llm_arch.data.completion import CompletionData
from llm_arch.data.dialogue import DialogueData
from llm_arch.data.module import DataModule
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.regression import RegressionData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.heads.classification import LabelPrediction, LabelSetPrediction
from llm_arch.heads.multiple_choice import ChoicePrediction
from llm_arch.heads.question_answering import AnswerPrediction
from llm_arch.heads.regression import NumberPrediction
from llm_arch.heads.relation_extraction import RelationPrediction
from llm_arch.heads.text_generation import GeneratedPrediction
from llm_arch.heads.token_classification import EntityPrediction, EntitySpan
from llm_arch.types import LabelSpace, Prediction, UserError

TEXT = {"text": "Ada lives here", "other": 1}


def made(kind: type[DataModule], labels: LabelSpace = LabelSpace(()), **options: Any) -> DataModule:  # noqa: B008 - frozen
    data = kind(**options)
    data.label_space = labels  # type: ignore[misc]
    return data


ONE = made(TextClassificationData, LabelSpace(("a", "b")), text_column="text", label_column="stars")
SEVERAL = made(TextClassificationData, LabelSpace(("a", "b"), multi=True), text_column="text")
SPAN = EntitySpan(0, 3, "person", 0.9)
QUESTION = {"question": "Who?", "context": "Ada lives here"}
CHOICES = {"question": "Who?", "choices": ["1", "0"]}
LABELLED = {"question": "Who?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}}
MARKED = {"text": "Ada lives here", "head": {"start": 0, "end": 3}, "tail": {"start": 10, "end": 14}}
CODE = {"source": "def f():\n", "suffix": "    return x\n"}


@pytest.mark.parametrize(
    ("data", "values", "prediction", "row"),
    [
        (ONE, TEXT, LabelPrediction(0, "b", 0.9, {}), {"text": "Ada lives here", "stars": "b"}),
        (SEVERAL, TEXT, LabelSetPrediction(0, ["a", "b"], {}), {"text": "Ada lives here", "label": ["a", "b"]}),
        (SEVERAL, TEXT, LabelSetPrediction(0, [], {}), {"text": "Ada lives here", "label": []}),
        (RegressionData(), TEXT, NumberPrediction(0, 2.5), {"text": "Ada lives here", "target": 2.5}),
        (
            TokenClassificationData(),
            TEXT,
            EntityPrediction(0, [SPAN]),
            {"text": "Ada lives here", "spans": [{"start": 0, "end": 3, "label": "person"}]},
        ),
        (
            TokenClassificationData(),
            {"tokens": ["Ada", "lives", "here"]},
            EntityPrediction(0, []),
            {"text": "Ada lives here", "spans": []},
        ),
        (RelationExtractionData(), MARKED, RelationPrediction(0, "born", 0.9, {}), {**MARKED, "label": "born"}),
        (
            QuestionAnsweringData(),
            QUESTION,
            AnswerPrediction(0, "here", 10, 14, 0.5, 0.1, []),
            {**QUESTION, "answers": {"text": ["here"], "answer_start": [10]}},
        ),
        (
            QuestionAnsweringData(),
            QUESTION,
            AnswerPrediction(0, "", None, None, 0.5, 0.5, []),
            {**QUESTION, "answers": {"text": [], "answer_start": []}},
        ),
        (MultipleChoiceData(), CHOICES, ChoicePrediction(0, "1", "0", 0.9, {}), {**CHOICES, "answer": 1}),
        (MultipleChoiceData(), LABELLED, ChoicePrediction(0, "B", "y", 0.9, {}), {**LABELLED, "answer": "B"}),
        (
            CompletionData(),
            {"prompt": "once"},
            GeneratedPrediction(0, "upon a time", ()),
            {"prompt": "once", "completion": "upon a time"},
        ),
        (
            CodeGenerationData(),
            CODE,
            GeneratedPrediction(0, "    x = 1\n", ()),
            {"source": "def f():\n", "target": "    x = 1\n    return x\n"},
        ),
    ],
)
def test_row(data: DataModule, values: dict[str, Any], prediction: Prediction, row: dict[str, Any]) -> None:
    found = data.as_row(values, prediction)
    assert found == row
    assert data.fault(found, True) is None


def test_the_number_of_a_choice_is_not_taken_for_a_text() -> None:
    data = MultipleChoiceData()
    row = data.as_row(CHOICES, ChoicePrediction(0, "1", "0", 0.9, {}))
    assert data.kept(row, True)["answer"] == 1


def test_formats_that_write_none() -> None:
    with pytest.raises(UserError, match="DialogueData makes no training rows of predictions; leave --as-rows out"):
        DialogueData().as_row({}, GeneratedPrediction(0, "x", ()))
