"""Two models beside one another, and how sure they are of what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llm_arch.inference.directory import Model
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret import Explainer, FaithfulnessTest, compare
from llm_arch.interpret.comparison import calibration_error
from llm_arch.types import UserError


def test_models_that_differ_a_little_agree_more_than_those_that_differ_a_lot(make: Callable[..., Model]) -> None:
    texts = [
        "turn on the bright kitchen lights now",
        "open the door, or the window, please",
        "it is cold and dark here",
    ]
    rows = [{"text": text} for text in texts]
    found = []
    for size in (0.01, 1.0):
        first, second = make("classes"), make("classes")
        torch.manual_seed(1)
        for parameter in second.head.parameters():
            parameter.data += size * torch.randn_like(parameter)
        found.append(compare(first, second, rows, method="gradient_x_input"))
    near, far = found
    assert near.correlation is not None
    assert far.correlation is not None
    assert near.correlation.mean > 0.95
    assert far.correlation.mean < near.correlation.mean
    assert near.same == 1.0
    assert near.faithfulness == {}
    assert [row.correlation for row in far.rows] == sorted(row.correlation for row in far.rows)  # type: ignore[type-var]
    assert {row.first.target for row in far.rows} == {row.second.target for row in far.rows}


@pytest.mark.parametrize("kind", ["entities", "relations", "answers", "choices", "numbers", "masks", "next"])
def test_every_head_is_asked_about_what_the_first_predicts(
    make: Callable[..., Model], rows_of: Callable[[str], Any], kind: str
) -> None:
    first, second = make(kind), make(kind)
    for parameter in second.head.parameters():
        parameter.data *= -1
    found = compare(first, second, rows_of(kind), method="gradient_x_input", faithfulness=FaithfulnessTest(draws=0))
    assert len(found.rows) == len(rows_of(kind))
    assert all(row.first.target == row.second.target for row in found.rows)
    assert {row.first.predicted for row in found.rows} == {row.first.target for row in found.rows}
    assert {"aopc_comprehensiveness", "aopc_sufficiency"} <= found.faithfulness.keys()
    assert "sensitivity" not in found.faithfulness
    assert found.to_dict()["rows"] == len(found.rows)


def test_differences_of_faithfulness_are_paired(make: Callable[..., Model], rows_of: Callable[[str], Any]) -> None:
    first, second, rows = make("classes"), make("classes"), rows_of("classes")
    second.head.parameters().__next__().data *= 0.5
    test = FaithfulnessTest(draws=0)
    found = compare(first, second, rows, method="gradient_x_input", faithfulness=test)
    explainer = Explainer(first, method="gradient_x_input", faithfulness=test)
    alone = [one.faithfulness.own.comprehensiveness for one in explainer(rows) if one.faithfulness]
    assert found.faithfulness["comprehensiveness"].first.mean == pytest.approx(np.mean(alone))  # type: ignore[union-attr]
    beside = found.faithfulness["comprehensiveness"]
    assert beside.difference.mean == pytest.approx(beside.second.mean - beside.first.mean)  # type: ignore[union-attr]


def test_a_method_that_serves_one_only_gives_way(make: Callable[..., Model], rows_of: Callable[[str], Any]) -> None:
    found = compare(make("classes"), make("classes", "textcnn"), rows_of("classes"), method="rollout")
    assert found.method == "occlusion"
    assert found.note == "both by occlusion: TextCNN has no attention, which rollout needs"
    assert all(row.first.method == row.second.method == "occlusion" for row in found.rows)


def test_models_of_two_tasks_are_refused(make: Callable[..., Model], rows_of: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="is a SequenceClassification and .* is a Regression; compare models of one"):
        compare(make("classes"), make("numbers"), rows_of("classes"))


def test_calibration_against_a_naive_one(make: Callable[..., Model]) -> None:
    model = make("classes", labels=["a", "b", "c"])
    generator = np.random.default_rng(0)
    words = ["turn", "light", "cold", "door", "window", "the", "bright", "now"]
    rows = [
        {"text": " ".join(generator.choice(words, 5)), "label": str(generator.choice(["a", "b", "c"]))}
        for _ in range(60)
    ]
    said = [(one.label, one.score) for one in Predictor(model).stream(rows)]  # type: ignore[attr-defined]
    right = np.array([row["label"] == label for row, (label, _) in zip(rows, said, strict=True)])
    sure = np.array([score for _, score in said])
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (sure >= low) & (sure < low + 1 / 15) if low < 14 / 15 else sure >= low
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(model, rows) == pytest.approx(expected, abs=1e-5)
    assert calibration_error(model, [{"text": "no label"}]) is None
