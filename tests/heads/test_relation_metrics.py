"""Scores of relations: the official ones of SemEval-2010 Task 8, by its scorer's rules written out again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from llm_arch.heads.relations import RelationMetrics, directed, relation_of, reversed_direction

NINE = (
    "Cause-Effect",
    "Component-Whole",
    "Content-Container",
    "Entity-Destination",
    "Entity-Origin",
    "Instrument-Agency",
    "Member-Collection",
    "Message-Topic",
    "Product-Producer",
)
LABELS = (*(f"{name}({way})" for name in NINE for way in ("e1,e2", "e2,e1")), "Other")


def official(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Part (iii) of semeval2010_task8_scorer-v1.2.pl: nine relations and Other, a wrong direction being wrong.

    The table counts (proposed, answer); where the relation is right and the direction wrong, the proposal is WRONG_DIR.
    """

    def bare(label: str) -> str:
        return label.removesuffix("(e1,e2)").removesuffix("(e2,e1)")

    table: Counter[tuple[str, str]] = Counter()
    proposed: Counter[str] = Counter()
    for said, true in zip(predicted, truth, strict=True):
        wrong_way = said != true and bare(said) == bare(true)
        row = "WRONG_DIR" if wrong_way else bare(said)
        table[row, bare(true)] += 1
        proposed[row] += 1
    answers = Counter(map(bare, truth))
    f1s: list[float] = []
    correct = claimed = wanted = 0
    for relation, answer in answers.items():
        if relation == "Other":
            continue
        right, wrong_way_count = table[relation, relation], table["WRONG_DIR", relation]
        precision = right / (proposed[relation] + wrong_way_count) if proposed[relation] else 0.0
        recall = right / answer
        f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        correct, claimed, wanted = correct + right, claimed + proposed[relation] + wrong_way_count, wanted + answer
    precision, recall = (correct / n if n else 0.0 for n in (claimed, wanted))
    return {
        "macro_f1": sum(f1s) / len(f1s) if f1s else 0.0,
        # The scorer adds up what was proposed over the relations of the answers alone.
        "micro_f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "accuracy": sum(a == b for a, b in zip(predicted, truth, strict=True)) / len(truth),
    }


def ours(
    predicted: Sequence[str], truth: Sequence[str], names: Sequence[str] = LABELS, negative: str | None = "Other"
) -> dict[str, float]:
    metric = RelationMetrics(names, negative)
    classes = [torch.tensor([names.index(label) for label in labels]) for labels in (predicted, truth)]
    for chunk in zip(*(c.split(7) for c in classes), strict=True):
        metric.update(*chunk)
    return {name: float(value) for name, value in metric.compute().items()}


def random_case(seed: int) -> tuple[list[str], list[str]]:
    """Truth over some labels, in any proportions, and predictions that are right, turned round, or anything."""
    draw = random.Random(seed)
    some = draw.sample(LABELS, draw.randint(1, len(LABELS)))
    truth = draw.choices(some, [draw.random() ** 3 + 1e-6 for _ in some], k=draw.randint(1, 60))
    right, turned = draw.random(), draw.random()
    predicted = []
    for label in truth:
        if draw.random() < right:
            predicted.append(label)
        elif draw.random() < turned and label != "Other":
            predicted.append(label.replace("e1,e2", "?").replace("e2,e1", "e1,e2").replace("?", "e2,e1"))
        else:
            predicted.append(draw.choice(LABELS))
    return predicted, truth


def test_a_thousand_random_cases_score_as_by_the_official_rules() -> None:
    turned = 0
    for seed in range(1000):
        predicted, truth = random_case(seed)
        expected = official(predicted, truth)
        assert ours(predicted, truth) == pytest.approx(expected, abs=1e-6), seed
        turned += any(a != b and relation_of(a) == relation_of(b) for a, b in zip(predicted, truth, strict=True))
    assert turned > 300


def test_by_hand() -> None:
    """Cause-Effect: 2 right of 4 predicted and 3 true; Message-Topic: 1 right of 1 predicted and 2 true."""
    truth = ["Cause-Effect(e1,e2)"] * 2 + [
        "Cause-Effect(e2,e1)",
        "Message-Topic(e1,e2)",
        "Message-Topic(e1,e2)",
        "Other",
    ]
    said = ["Cause-Effect(e1,e2)"] * 2 + ["Cause-Effect(e1,e2)", "Message-Topic(e1,e2)", "Other", "Cause-Effect(e2,e1)"]
    found = ours(said, truth)
    assert found == pytest.approx({"macro_f1": (4 / 7 + 2 / 3) / 2, "micro_f1": 6 / 10, "accuracy": 3 / 6})


def test_a_wrong_direction_is_wrong_but_no_other_relations_fault() -> None:
    truth = ["Cause-Effect(e1,e2)", "Message-Topic(e1,e2)"]
    turned = ["Cause-Effect(e2,e1)", "Message-Topic(e1,e2)"]
    assert ours(turned, truth)["macro_f1"] == pytest.approx(0.5)
    assert ours(truth, truth)["macro_f1"] == 1


def test_labels_without_directions_are_relations_each() -> None:
    names = ["born_in", "none", "works_for", "part(of)"]
    draw = random.Random(1)
    truth, predicted = draw.choices(names, k=80), draw.choices(names, k=80)
    counted = [name for name in names if name != "none"]
    found = ours(predicted, truth, names, "none")
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, labels=counted, average="macro"))
    assert found["micro_f1"] == pytest.approx(f1_score(truth, predicted, labels=counted, average="micro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    everything = ours(predicted, truth, names, None)
    assert everything["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert everything["micro_f1"] == pytest.approx(accuracy_score(truth, predicted))
    assert ours(predicted, truth, names, "Other") == everything


def test_by_relation() -> None:
    predicted, truth = random_case(5)
    metric = RelationMetrics(LABELS, "Other")
    metric.update(*(torch.tensor([LABELS.index(label) for label in labels]) for labels in (predicted, truth)))
    report = metric.per_label()
    assert list(report) == [*NINE, "Other"]
    # A row that is turned round is one more that is predicted and not right: give it a name of its own.
    said = [
        relation_of(b) + ("" if a == b or relation_of(a) != relation_of(b) else "?")
        for a, b in zip(truth, predicted, strict=True)
    ]
    bare = [relation_of(label) for label in truth]
    for name, row in report.items():
        right = sum(a == b == name for a, b in zip(said, bare, strict=True))
        claimed, true = sum(s.rstrip("?") == name for s in said), bare.count(name)
        assert row["support"] == true
        assert row["precision"] == pytest.approx(right / max(1, claimed))
        assert row["recall"] == pytest.approx(right / max(1, true))
        assert row["f1"] == pytest.approx(2 * right / max(1, claimed + true))


def test_nothing_counted_is_zero() -> None:
    assert ours(["Other"], ["Other"]) == {"macro_f1": 0.0, "micro_f1": 0.0, "accuracy": 1.0}
    assert ours(["Cause-Effect(e1,e2)"], ["Other"]) == {"macro_f1": 0.0, "micro_f1": 0.0, "accuracy": 0.0}


@pytest.mark.parametrize(
    ("label", "relation", "has_direction", "turned"),
    [
        ("Cause-Effect(e1,e2)", "Cause-Effect", True, False),
        ("Cause-Effect(e2,e1)", "Cause-Effect", True, True),
        ("Other", "Other", False, False),
        ("a(e1,e2)b", "a(e1,e2)b", False, False),
        ("works_for", "works_for", False, False),
    ],
)
def test_directions(label: str, relation: str, has_direction: bool, turned: bool) -> None:
    assert (relation_of(label), directed(label), reversed_direction(label)) == (relation, has_direction, turned)
