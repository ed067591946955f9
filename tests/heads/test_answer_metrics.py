"""Answers compared as SQuAD's script compares them, and the threshold for none: against the rules written out anew."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llm_arch.heads.answers import AnswerMetrics, agreement, normalised

# The rules of SQuAD's evaluation script, version 2.0, from their description: lower case, no ASCII punctuation, no
# articles as whole words, words between white space; F1 of bags of words; no words agree with no words alone.

ASCII_PUNCTUATION = {chr(i) for i in range(33, 127)} - {
    chr(i) for i in (*range(48, 58), *range(65, 91), *range(97, 123))
}
WORD_CHARACTERS = "_"  # beside letters and digits; but it is punctuation, so that none is left


def official_words(text: str) -> list[str]:
    kept = [c for c in text.lower() if c not in ASCII_PUNCTUATION]
    runs: list[str] = []  # runs of letters and digits, and single other characters, so that articles stand alone
    before = False
    for c in kept:
        inside = c.isalnum() or c in WORD_CHARACTERS
        if inside and before:
            runs[-1] += c
        else:
            runs.append(c)
        before = inside
    text = "".join(" " if run in {"a", "an", "the"} else run for run in runs)
    return text.split()


def official_scores(answer: str, gold: Sequence[str]) -> tuple[float, float]:
    known = [text for text in gold if official_words(text)] or [""]
    exact = f1 = 0.0
    for text in known:
        found, right = official_words(answer), official_words(text)
        exact = max(exact, float(" ".join(found) == " ".join(right)))
        if not found or not right:
            f1 = max(f1, float(found == right))
            continue
        left, same = list(right), 0
        for word in found:
            if word in left:
                left.remove(word)
                same += 1
        if same:
            precision, recall = same / len(found), same / len(right)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1


WORDS = ("the", "a", "An", "THE", "theatre", "Paris", "café", "U.S.A.", "1,000", "don't", "well-known", "(see", "fig.)")
WORDS += (
    "\u00a0",
    "  ",
    "—",
    "…",
    "«non»",
    "北京",
    "ananas",
    "a.",
    "the,",
    "",
    "$5",
    "5",
    "_a_",
    "\t",
    "“quoted”",
    "ß",
    "İ",
)


def random_text(draw: random.Random, most: int = 5) -> str:
    return draw.choice(["", " "]).join(
        draw.choice(WORDS) + draw.choice(["", " ", "  "]) for _ in range(draw.randint(0, most))
    )


def test_english_is_scored_as_squads_script_does() -> None:
    draw = random.Random(0)
    kinds = set()
    for _ in range(1000):
        gold = [random_text(draw) for _ in range(draw.randint(0, 3))]
        answer = draw.choice([random_text(draw), *gold])
        expected = official_scores(answer, gold)
        assert agreement(answer, gold) == pytest.approx(expected, abs=1e-12), (answer, gold)
        assert normalised(answer) == official_words(answer), answer
        kinds.add((expected[0], 0 < expected[1] < 1, bool(gold)))
    assert len(kinds) == 5  # right, half right and wrong with an answer; right and wrong without


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("the Eiffel Tower", ["Eiffel Tower!"], (1, 1)),
        ("in Paris", ["Paris"], (0, 2 / 3)),
        ("Paris", ["London", "in Paris"], (0, 2 / 3)),
        ("", [], (1, 1)),
        ("Paris", [], (0, 0)),
        ("", ["Paris"], (0, 0)),
        ("the", ["..."], (1, 1)),
        ("no no no", ["no no"], (0, 0.8)),
    ],
)
def test_known_cases(answer: str, gold: list[str], expected: tuple[float, float]) -> None:
    assert agreement(answer, gold) == pytest.approx(expected)


def test_other_languages_have_articles_and_punctuation_of_their_own() -> None:
    assert normalised("Der alte Hafen", "de") == ["alte", "hafen"]
    assert normalised("The alte Hafen", "de") == ["the", "alte", "hafen"]
    assert normalised("¿la «casa»?", "es-MX") == ["casa"]
    assert normalised("«casa»", "en") == ["«casa»"]  # SQuAD's script knows no other punctuation
    assert normalised("La мир, a я", "ru") == ["la", "мир", "a", "я"]
    assert agreement("den Hafen", ["der Hafen"], "de_DE") == (1, 1)


@pytest.mark.parametrize("language", ["zh", "zh-TW", "ja", "th"])
def test_without_spaces_characters_count(language: str) -> None:
    assert normalised("北京 2008年。", language) == ["北", "京", "2008", "年"]
    exact, f1 = agreement("北京大学", ["北京"], language)
    assert (exact, f1) == (0, pytest.approx(2 / 3))
    assert agreement("北 京", ["北京"], language) == (1, 1)
    assert agreement("北京大学", ["北京"]) == (0, 0)


# The metric


class Cases:
    """Random rows, and what the script would say of them at a threshold."""

    def __init__(self, count: int, seed: int, silent: float = 0.3) -> None:
        draw = random.Random(seed)
        self.spans = [random_text(draw) for _ in range(count)]
        self.answers: list[list[str]] = [
            [] if draw.random() < silent else [draw.choice([span, random_text(draw)])] for span in self.spans
        ]
        self.difference = torch.tensor(
            [draw.choice([draw.gauss(0, 3), float(draw.randint(-1, 1))]) for _ in self.spans]
        )

    def inputs(self, threshold: float, rows: Sequence[int]) -> tuple[Any, ...]:
        spans, answers = [self.spans[i] for i in rows], [self.answers[i] for i in rows]
        return spans, self.difference[list(rows)], threshold, answers, ["en"] * len(rows)

    def scores(self, threshold: float) -> dict[str, float]:
        rows = []
        for span, gold, difference in zip(self.spans, self.answers, self.difference.tolist(), strict=True):
            rows.append((*official_scores("" if difference > threshold else span, gold), bool(gold)))
        found = {}
        for name, kept in (("", rows), ("_answerable", [row for row in rows if row[2]])):
            for i, metric in enumerate(("exact_match", "f1")):
                found[metric + name] = sum(row[i] for row in kept) / max(1, len(kept))
        return found

    def best_f1(self) -> float:
        values = sorted(set(self.difference.tolist()))
        return max(self.scores(threshold)["f1"] for threshold in (values[0] - 1, *values))


def numbers(metric: AnswerMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 1.0, float("inf")])
def test_all_rows_and_those_with_an_answer(threshold: float) -> None:
    cases, metric = Cases(60, 1), AnswerMetrics()
    metric.update(*cases.inputs(threshold, range(60)))
    assert numbers(metric) == pytest.approx(cases.scores(threshold), abs=1e-6)


def test_batches_and_their_order_change_nothing() -> None:
    cases, whole, parts = Cases(50, 2), AnswerMetrics(), AnswerMetrics()
    whole.update(*cases.inputs(0.5, range(50)))
    order = random.Random(0).sample(range(50), 50)
    for rows in (order[:7], order[7:8], order[8:]):
        parts.update(*cases.inputs(0.5, rows))
    assert numbers(whole) == pytest.approx(numbers(parts), abs=1e-7)
    assert whole.best_threshold() == parts.best_threshold()
    parts.reset()
    parts.update(*cases.inputs(0.5, [0]))
    assert len(parts.rows) == 1


@pytest.mark.parametrize("seed", range(30))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    cases, metric = Cases(1 + 2 * seed, seed, silent=(0.1, 0.5, 1.0)[seed % 3]), AnswerMetrics()
    metric.update(*cases.inputs(0.0, range(len(cases.spans))))
    metric.threshold = metric.best_threshold()
    assert float(metric.compute()["f1"]) == pytest.approx(cases.best_f1(), abs=1e-6)
    if metric.threshold != float("inf"):  # apart from all rows, so that rounding moves none to the other side
        assert float((cases.difference - metric.threshold).abs().min()) > 1e-4


def test_where_every_question_has_an_answer_none_is_left_unanswered() -> None:
    metric = AnswerMetrics()
    metric.update(["Paris", "Rome"], torch.tensor([5.0, -5.0]), 0.0, [["Paris"], ["London"]], ["en", "en"])
    assert metric.best_threshold() == float("inf")
    metric.threshold = metric.best_threshold()
    assert numbers(metric) == {"exact_match": 0.5, "exact_match_answerable": 0.5, "f1": 0.5, "f1_answerable": 0.5}


def test_nothing_counted_is_zero() -> None:
    metric = AnswerMetrics()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert set(numbers(metric).values()) == {0.0}
    metric.update(["x"], torch.tensor([1.0]), 0.0, [[]], ["en"])
    assert numbers(metric) == {"exact_match": 1.0, "exact_match_answerable": 0.0, "f1": 1.0, "f1_answerable": 0.0}


def test_ranks_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, whole = Cases(40, 3), AnswerMetrics()
    whole.update(*cases.inputs(0.0, range(40)))
    ranks = [AnswerMetrics(), AnswerMetrics()]
    for metric, rows in zip(ranks, (range(0, 40, 2), range(1, 40, 2)), strict=True):
        metric.update(*cases.inputs(0.0, rows))
    shares = [torch.cat(metric.rows) for metric in ranks]
    # What two processes would gather.
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", lambda *_, **__: shares)
    for metric, own in zip(ranks, shares, strict=True):
        metric.distributed_available_fn = lambda: True
        metric.dist_sync_fn = lambda *_, **__: shares
        with metric.sync_context():
            assert metric.best_threshold() == whole.best_threshold()
        metric.threshold = whole.threshold = whole.best_threshold()
        whole._computed = None
        assert numbers(metric) == pytest.approx(numbers(whole), abs=1e-7)
        assert torch.equal(torch.cat(metric.rows), own)
