"""Faithfulness against a naive computation, closed forms on a linear model, and what people marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import average_precision_score

from llm_arch.inference.directory import Model
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret import Explainer, FaithfulnessTest
from llm_arch.interpret.explanation import Explanation, WordShare
from llm_arch.interpret.interval import interval
from llm_arch.interpret.plausibility import marked_of, plausibility
from llm_arch.interpret.ranks import kendall, spearman
from llm_arch.types import UserError

TEXT = "turn on the bright kitchen lights now please"
NUMBERS = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def _probability(model: Model, text: str, label: str) -> float:
    (found,) = Predictor(model)([text])
    return float(found.scores[label])  # type: ignore[attr-defined]


def _without(words: set[int], mask: str) -> str:
    return " ".join(mask if i in words else word for i, word in enumerate(TEXT.split()))


@pytest.mark.parametrize("backbone", ["tiny:bert", "lstm", "textcnn"])
def test_faithfulness_is_what_predictions_of_changed_texts_say(make: Callable[..., Model], backbone: str) -> None:
    model = make("classes", backbone)
    shares = (0.1, 0.4)
    test = FaithfulnessTest(shares=shares, draws=0)
    (found,) = Explainer(model, method="gradient_x_input", faithfulness=test)([TEXT])
    assert found.faithfulness is not None
    own, count = found.faithfulness.own, len(TEXT.split())
    assert [word.word for word in found.words] == TEXT.split()
    order = sorted(range(count), key=lambda i: -found.words[i].score)
    label = found.target.removeprefix("label ")
    mask = model.data.tokenizer.mask_token
    whole = _probability(model, TEXT, label)

    def losses(share: float) -> tuple[float, float]:
        top = int(np.ceil(share * count))
        parts = set(order[:top]), set(order[top:])
        return tuple(whole - _probability(model, _without(part, mask), label) for part in parts)  # type: ignore[return-value]

    comprehensiveness, sufficiency = zip(*map(losses, shares), strict=True)
    assert own.aopc_comprehensiveness == pytest.approx(np.mean(comprehensiveness), abs=1e-5)
    assert own.aopc_sufficiency == pytest.approx(np.mean(sufficiency), abs=1e-5)
    assert (own.comprehensiveness, own.sufficiency) == pytest.approx(losses(0.2), abs=1e-5)
    alone = [whole - _probability(model, _without({i}, mask), label) for i in range(count)]
    assert own.tau == pytest.approx(kendalltau([w.score for w in found.words], alone).statistic, abs=0.08)


def test_occlusion_agrees_with_leaving_one_out_and_random_scores_do_not(make: Callable[..., Model]) -> None:
    """What occlusion measures is what τ compares with, in a logit whose probability has the same order."""
    texts = [TEXT, "open the door, or the window, or leave", "it is cold and dark in the kitchen"] * 4
    found = Explainer(make("binary"), method="occlusion", faithfulness=FaithfulnessTest(draws=0))(texts)
    assert all(one.faithfulness is not None and (one.faithfulness.own.tau or 0) > 0.99 for one in found)
    random = [one.faithfulness.random.tau or 0.0 for one in found if one.faithfulness]
    assert abs(np.mean(random)) < 0.5
    assert len(set(random)) > 3  # each row has scores of its own


def test_sensitivity_of_a_linear_model_is_known(linear: Model) -> None:
    """Gradient × (input − baseline) moves by gradient × step: its size is known where the step is."""
    test = FaithfulnessTest(draws=2, radius=0.2)
    (found,) = Explainer(linear, method="gradient_x_input", faithfulness=test)([TEXT])
    (less,) = Explainer(linear, method="gradient_x_input", faithfulness=FaithfulnessTest(draws=2, radius=0.1))([TEXT])
    assert found.faithfulness is not None
    assert less.faithfulness is not None
    one, other = found.faithfulness.own.sensitivity, less.faithfulness.own.sensitivity
    assert one is not None
    assert other is not None
    assert one == pytest.approx(2 * other, rel=1e-3)
    assert 0 < one < 1
    assert found.faithfulness.random.sensitivity > 0.5  # type: ignore[operator] # other numbers each time


@pytest.mark.parametrize("kind", ["binary", "sets", "entities", "crf", "relations", "answers", "choices", "numbers"])
def test_every_head_is_tested(make: Callable[..., Model], rows_of: Callable[[str], Any], kind: str) -> None:
    explainer = Explainer(make(kind), method="gradient_x_input", faithfulness=FaithfulnessTest(draws=1))
    for one in explainer(rows_of(kind)):
        assert one.faithfulness is not None
        for numbers in (one.faithfulness.own, one.faithfulness.random):
            assert np.isfinite(numbers.aopc_comprehensiveness)
            assert numbers.sensitivity is not None
            if kind != "numbers":
                assert max(abs(numbers.comprehensiveness), abs(numbers.sufficiency)) <= 1
        assert one.to_dict()["faithfulness"]["random"].keys() == one.to_dict()["faithfulness"].keys() - {"random"}


@pytest.mark.parametrize("kind", ["next", "masks", "written", "pairs", "flat pair"])
def test_probabilities_of_heads_over_tokens(
    make: Callable[..., Model], rows_of: Callable[[str], Any], kind: str
) -> None:
    for one in Explainer(make(kind), method="occlusion", faithfulness=FaithfulnessTest(draws=0))(rows_of(kind)):
        assert one.faithfulness is not None
        assert abs(one.faithfulness.own.comprehensiveness) <= 1


def test_probabilities_are_those_of_predictions(make: Callable[..., Model], rows_of: Callable[[str], Any]) -> None:
    """Of every head whose predictions have one: what faithfulness begins with is what `predict` says."""
    from llm_arch.interpret.asked import asked
    from llm_arch.interpret.explained_rows import ExplainedRows

    for kind in ("classes", "binary", "sets", "relations", "answers", "choices", "crf"):
        model = make(kind)
        rows = rows_of(kind)
        predictor = Predictor(model)
        said = list(predictor.stream(rows))
        columns = predictor.encoded(rows)
        everything: dict[str, Any] = {**columns, "index": list(range(len(rows))), "epoch": 0}
        batch = model.data.collate(everything, labelled=False)
        with torch.no_grad():
            targets, _ = asked(model, batch, ExplainedRows(model.data, rows, batch), rows, None, None)
            logits = model.head(model.backbone(batch), batch)
            found = model.head.probability(logits, batch, targets).tolist()
        if kind == "sets":
            wanted = [max(one.scores.values()) for one in said]  # type: ignore[attr-defined]
        elif kind == "crf":
            assert all(0 < one <= 1 for one in found)
            continue
        else:
            wanted = [one.null_score if getattr(one, "start", 0) is None else one.score for one in said]  # type: ignore[attr-defined]
        assert found == pytest.approx(wanted, abs=1e-5), kind


def test_a_contrast_of_entities_is_a_difference_of_probabilities(
    make: Callable[..., Model], rows_of: Callable[[str], Any]
) -> None:
    """Also with a CRF, whose numbers are logarithms."""
    for kind in ("crf", "entities"):
        # Where all words go, the same go whatever the scores are.
        test = FaithfulnessTest(draws=0, shares=(1.0,))
        explainer = Explainer(make(kind), method="occlusion", faithfulness=test)
        row = rows_of(kind)[1]

        def losses(target: str, against: str | None = None, explainer: Any = explainer, row: Any = row) -> Any:
            (found,) = explainer([row], target=target, against=against)
            return found.faithfulness.own

        place, person, both = (
            losses(*one).aopc_comprehensiveness for one in (("7-13:LOC",), ("7-13:PER",), ("7-13:LOC", "7-13:PER"))
        )
        assert both == pytest.approx(place - person, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(NUMBERS, NUMBERS)
def test_rank_correlations(one: list[int], other: list[int]) -> None:
    size = min(len(one), len(other))
    one, other = one[:size], other[:size]
    if len(set(one)) < 2 or len(set(other)) < 2:
        assert kendall(one, other) is None
        assert spearman(one, other) is None
        return
    assert kendall(one, other) == pytest.approx(kendalltau(one, other).statistic)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    intervals = [interval(generator.normal(3.0, 1.0, 40).tolist()) for _ in range(100)]
    covered = sum(one is not None and one.low <= 3.0 <= one.high for one in intervals)
    assert 85 <= covered <= 100
    assert interval([None, None]) is None
    assert interval([1.0, None, 3.0]) == interval([1.0, 3.0])


def _explanation(scores: list[float]) -> Explanation:
    words = tuple(WordShare(f"w{i}", "text", 3 * i, 3 * i + 2, score) for i, score in enumerate(scores))
    text = " ".join(word.word for word in words)
    return Explanation(0, {"text": text}, "label a", 0.0, words, 0.0, None, "occlusion")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=10))
def test_plausibility_is_average_precision(pairs: list[tuple[int, bool]]) -> None:
    scores, labels = [float(score) * 100 for score, _ in pairs], [label for _, label in pairs]
    spans = [(3 * i, 3 * i + 1) for i, label in enumerate(labels) if label]
    (found,) = plausibility([_explanation(scores)], [{"text": spans}])
    if all(labels) or not any(labels):
        assert found is None
        return
    assert found is not None
    assert found.auprc == pytest.approx(average_precision_score(labels, scores), abs=1e-5)
    perfect = [float(label) for label in labels]
    (best,) = plausibility([_explanation(scores)], [{"text": spans}], [perfect])
    assert (best.auprc, best.f1) == pytest.approx((1.0, 1.0))  # type: ignore[union-attr]


def test_marked_words() -> None:
    texts = {"question": "you are awful", "context": "indeed"}
    for value in ([[8, 13]], [8, 9, 10, 11, 12], ["Awful"], '["awful"]', {"question": [[8, 13]]}):
        found = marked_of(value, texts)
        assert sorted({i for start, end in found["question"] for i in range(start, end)}) == [8, 9, 10, 11, 12]
    for bad, why in (
        ("awful", "write spans"),
        ([[8, 99]], "within its text of 13"),
        (["lovely"], "'lovely'"),
        ({"answer": []}, "question, context"),
        ([1.5], "write spans"),
    ):
        with pytest.raises(UserError, match=why):
            marked_of(bad, texts)


def test_settings_that_make_no_sense(linear: Model) -> None:
    for options in ({"shares": ()}, {"shares": (0.0,)}, {"draws": -1}, {"radius": 0.0}, {"baseline": "nothing"}):
        with pytest.raises(UserError):
            FaithfulnessTest(**options)


def test_moved_embeddings_are_put_back(make: Callable[..., Model]) -> None:
    model = make("classes")
    before = Predictor(model)([TEXT])
    Explainer(model, method="integrated_gradients", faithfulness=FaithfulnessTest(draws=1))([TEXT])
    after = Predictor(model)([TEXT])
    assert replace(before[0]) == replace(after[0])
