"""Labels of every kind are read back from batches; a label that changes on its way is found."""

import pytest
import torch

from llm_arch import data as formats
from llm_arch.evaluation.verification.labels import Labels
from llm_arch.evaluation.verification.subject import Subject
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.heads.regression import Regression
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.task import Task

TEXT = "Ada met Charles in London town"
PERSON = {"start": 0, "end": 3, "label": "person"}
PLACE = {"start": 19, "end": 30, "label": "place"}
SPANS = [{"text": TEXT, "spans": [PERSON, PLACE]}, {"text": "Nobody was there", "spans": []}] * 3
TAGS = [{"tokens": ["Ada", "met", "Chårles"], "tags": ["B-person", "O", "B-person"]}, {"tokens": ["no"], "tags": ["O"]}]
ANSWERS = [
    {"question": "Where?", "context": TEXT, "answers": {"text": ["London"], "answer_start": [19]}},
    {"question": "Why?", "context": TEXT, "answers": {"text": [], "answer_start": []}},
]
CHOICES = [{"question": "Who?", "choices": ["Ada Lovelace", "a lamp", "nobody"], "answer": i % 3} for i in range(4)]
NUMBERS = [{"text": f"{i} stars", "target": i / 3} for i in range(5)]
WRITTEN = [{"prompt": f"say {i}", "completion": f"It is {i}, and  that is all."} for i in range(4)]

KINDS = {
    "spans": (formats.TokenClassificationData, SPANS, TokenClassification, {}),
    "tags": (formats.TokenClassificationData, TAGS * 3, TokenClassification, {}),
    "windows": (formats.TokenClassificationData, SPANS, TokenClassification, {"max_length": 6, "stride": 1}),
    "answers": (formats.QuestionAnsweringData, ANSWERS, QuestionAnswering, {}),
    "windows of answers": (formats.QuestionAnsweringData, ANSWERS, QuestionAnswering, {"max_length": 9, "stride": 1}),
    "choices": (formats.MultipleChoiceData, CHOICES, MultipleChoice, {}),
    "numbers": (formats.RegressionData, NUMBERS, Regression, {}),
    "relations": (formats.RelationExtractionData, "sample:relations", RelationExtraction, {}),
    "written": (formats.CompletionData, WRITTEN, TextGeneration, {}),
}
# What is wrong in the batches of each kind: the label, and what becomes of it.
WRONG = {
    "spans": ("tag", lambda tag: tag.flip(0)),
    "tags": ("tag", lambda tag: (tag + 1) % 2),
    "windows": ("tag", lambda tag: tag.roll(1)),
    "answers": ("answer_start", lambda start: start + 1),
    "windows of answers": ("answer_end", lambda end: end - 1),
    "choices": ("choice", lambda choice: (choice + 1) % 3),
    "numbers": ("target", lambda target: target + 1e-3),
    "relations": ("label", lambda label: label.flip(0)),
    "written": ("targets", lambda targets: targets.roll(3)),
}


@pytest.fixture
def checked(write_rows, tokenizer, tmp_path):
    def check(kind, change=None):
        format_, rows, head, options = KINDS[kind]
        train = rows if isinstance(rows, str) else write_rows(rows)

        class Changed(format_):
            """Its labels changed on the way into a batch."""

            def collate(self, columns, labelled=True):
                batch = super().collate(columns, labelled)
                name, of = change
                batch.labels[name] = of(batch.labels[name])
                return batch

        def build():
            made = (Changed if change else format_)(train, tokenizer=tokenizer, validation_fraction=0, **options)
            backbone = "tiny:llama" if head is TextGeneration else "tiny:bert"
            return Task(backbone, head, made.label_space, vocabulary=made.vocabulary), made

        return Labels().run(Subject(build, tmp_path))

    return check


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_back(kind, checked):
    found = checked(kind)
    assert (found.status, found.measured) == ("pass", 1.0), found.reason


@pytest.mark.parametrize("kind", WRONG)
def test_changed_labels_are_found(kind, checked):
    found = checked(kind, WRONG[kind])
    assert found.status == "fail"
    assert found.measured < 1
    assert "line " in found.reason
    assert "was given" in found.reason


def test_texts_that_change_in_the_tokenizer_are_told(checked):
    """This tokenizer writes in lower case."""
    assert "4 of 4 texts to write come back, 0 of them to the character" in checked("written").reason


def test_a_kind_that_is_not_known(checked, monkeypatch):
    def renamed(columns):
        return {"mine": torch.tensor(columns["target"])}

    monkeypatch.setattr(formats.RegressionData, "label_tensors", lambda self, columns: renamed(columns))
    found = checked("numbers")
    assert (found.status, found.measured) == ("skip", None)
    assert found.reason == "the batch's labels are mine, which this check can't read back"
