"""Filters against naive versions: every pair compared, and a classifier that the test knows."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.augmentation import Agreement, Columns, Leaks
from llm_arch.augmentation.rows import read_row
from llm_arch.augmentation.similarity import TextIndex, normalized
from llm_arch.data import RegressionData, TextClassificationData
from llm_arch.heads.classification import LabelPrediction, LabelSetPrediction, SequenceClassification
from llm_arch.heads.regression import Regression
from llm_arch.inference import Predictor, save
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "B", "a!", "?"]), min_size=1, max_size=9).map(" ".join)


def naive(new: str, old: list[str], near: float | None) -> str | None:
    """All pairs, by sets of word pairs."""

    def words(text: str) -> list[str]:
        return text.lower().translate(str.maketrans("", "", string.punctuation)).split() or [text]

    def pairs(text: str) -> set[tuple[str, ...]]:
        own = words(text)
        return {tuple(own[i : i + 2]) for i in range(max(1, len(own) - 1))}

    if any(words(new) == words(one) for one in old):
        return "duplicates"
    overlaps = [len(pairs(new) & pairs(one)) / len(pairs(new) | pairs(one)) for one in old]
    return "near-duplicates" if near is not None and any(overlap >= near for overlap in overlaps) else None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(TEXTS, max_size=8), st.lists(TEXTS, min_size=1, max_size=8), st.sampled_from([None, 0.2, 0.5, 0.7, 1.0])
)
def test_the_index_finds_what_comparing_all_finds(old: list[str], new: list[str], near: float | None) -> None:
    index = TextIndex([[text] for text in old], near)
    known = list(old)
    for text in new:
        expected = naive(text, known, near)
        assert index.holds([text]) == expected
        if expected is None:
            index.add([text])
            known.append(text)


def test_texts_of_a_row_count_together() -> None:
    index = TextIndex([("one two", "three")])
    assert index.holds(("One, two!", "three")) == "duplicates"
    assert index.holds(("one", "two three")) is None
    assert normalized([" :) "]) == ":)"
    with pytest.raises(UserError, match=r"near_duplicates must be in \(0, 1\], got 1.5"):
        TextIndex(near=1.5)


def rows(*values: Mapping[str, Any]) -> list[Any]:
    return [read_row(one, Columns()) for one in values]


def test_leaks() -> None:
    given = rows(
        {"text": "Turn ON the light!"}, {"text": "turn the light on"}, {"tokens": ["turn", "on", "the", "light"]}
    )
    equal = "duplicates of validation or test rows"
    assert Leaks([["turn on the light"]])(given) == [equal, None, equal]
    assert Leaks([["turn on the light"]], 0.2)(given) == [equal, "near-duplicates of validation or test rows", equal]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    torch.manual_seed(3)
    task = Task("tiny:bert", SequenceClassification, LabelSpace(("off", "on")))
    with torch.no_grad():
        task.head.classify.weight.normal_(0, 1)
    data = TextClassificationData(tokenizer=tokenizer, max_length=32)
    return save(task.eval(), data, tmp_path_factory.mktemp("agreement") / "model")


def test_agreement_is_that_of_the_predictor(classifier: Path) -> None:
    texts = [f"{word} the lamp" for word in ("dim", "light", "stop", "cold", "warm", "kitchen", "open", "music")]
    found = Predictor(classifier)(texts)
    given = rows(*({"text": text, "label": ("off", "on")[i % 2]} for i, text in enumerate(texts)))
    middle = sorted(one.score for one in found)[4]  # type: ignore[attr-defined]
    expected = []
    for row, one in zip(given, found, strict=True):
        assert isinstance(one, LabelPrediction)
        agrees = one.label == row.label
        expected.append(None if agrees and one.score >= middle else "score" if agrees else "another label")
    kept = Agreement(classifier, min_score=middle)(given)
    assert [reason and reason.split(" b")[0] for reason in kept] == expected
    assert {None, "another label"} < set(expected)
    anyhow = Agreement(classifier)(given)
    assert [reason is None for reason in anyhow] == [one != "another label" for one in expected]


def test_sets_of_labels_agree_as_sets(classifier: Path) -> None:
    judge = Agreement(classifier)
    judge.predictor.model.data.label_delimiter = "|"  # type: ignore[attr-defined]
    predicted = LabelSetPrediction(0, ["on", "off"], {"on": 0.9, "off": 0.6, "x": 0.1})
    judge.predictor.stream = lambda rows: iter([predicted] * len(list(rows)))  # type: ignore[method-assign]
    given = rows(
        {"text": "a", "label": "off| on"}, {"text": "a", "label": ["off"]}, {"text": "a", "label": ["on", "off"]}
    )
    assert judge(given) == [None, "another label by the classifier", None]
    judge.min_score = 0.7
    assert judge(given)[0] == "score below 0.7"


def test_models_that_do_not_classify(tmp_path: Path, tokenizer: str, classifier: Path) -> None:
    task = Task("tiny:bert", Regression, LabelSpace((), moments=(0.0, 1.0)))
    numbers = save(task.eval(), RegressionData(tokenizer=tokenizer, max_length=32), tmp_path / "numbers")
    with pytest.raises(UserError, match="'label' is no label; name a model that classifies these rows"):
        Agreement(numbers)
    judge = Agreement(classifier)
    judge.predictor.stream = lambda rows: iter([SimpleNamespace()])  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match="holds a SequenceClassification, which gives no label to agree with"):
        judge(rows({"text": "a", "label": "on"}))
    with pytest.raises(UserError, match=r"min_score must be in \[0, 1\], got 2"):
        Agreement(classifier, min_score=2)
