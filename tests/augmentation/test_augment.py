"""Which rows come out: as many as asked for, the same for a seed, with their provenance, and none twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_arch.augmentation import Augmented, Columns, Filter, Leaks, Method, Request, WordEdits, augment
from llm_arch.augmentation.similarity import normalized
from llm_arch.types import UserError


class Numbering(Method):
    """Puts a number of the key behind the text, of which there are as many as `values`."""

    name = "numbering"

    def __init__(self, values: int = 1000) -> None:
        self.values = values

    def __call__(self, requests: Sequence[Request]) -> list[Any]:
        return [{**r.row.values, "text": f"{r.row.texts[0]} {r.key % self.values}"} for r in requests]


def test_new_rows_say_where_they_come_from(rows: Callable[..., Any]) -> None:
    made = augment(rows(5), WordEdits(share=0.3), copies=2, seed=7)
    assert made.original == rows(5)
    assert made.rows == made.original + made.new
    origins = [row["augmentation"] for row in made.new]
    assert len(made.new) == made.made - sum(made.dropped.values())
    assert [(one["source_line"], one["copy"]) for one in origins] == sorted(
        (one["source_line"], one["copy"]) for one in origins
    )
    for row in made.new:
        origin = row["augmentation"]
        assert origin.keys() == {"method", "source_line", "copy", "seed"}
        assert (origin["method"], origin["seed"]) == ("words", 7)
        source = made.original[origin["source_line"] - 1]
        assert row["label"] == source["label"]
        assert set(row["text"].split()) <= set(source["text"].split())
    texts = [normalized([row["text"]]) for row in made.rows]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("options", [{"copies": 3}, {"per_label": 40}], ids=["copies", "per label"])
def test_the_same_seed_gives_the_same_rows(rows: Callable[..., Any], options: dict[str, Any]) -> None:
    given = rows(12, labels=("off", "on", "off"))

    def new(seed: int, batch_size: int) -> list[Any]:
        method = WordEdits(("swap", "delete", "insert", "typo"), share=0.2)
        made = augment(given, method, seed=seed, batch_size=batch_size, near_duplicates=0.8, **options)
        return [made.new, made.made, made.dropped, made.unchanged]

    first = new(5, 64)
    assert first[0]
    assert first == new(5, 1) == new(5, 7)
    assert first != new(6, 64)


def test_more_copies_do_not_change_the_first(rows: Callable[..., Any]) -> None:
    few = augment(rows(6), Numbering(), copies=2).new
    many = augment(rows(20), Numbering(), copies=3).new
    wanted = [row for row in many if row["augmentation"]["copy"] < 2 and row["augmentation"]["source_line"] <= 6]
    assert few == wanted


def test_labels_are_filled_up(rows: Callable[..., Any]) -> None:
    given = rows(9, labels=("off", "on", "off", "off"))
    made = augment(given, Numbering(10**6), per_label=8)
    assert Counter(row["label"] for row in made.rows) == {"off": 8, "on": 8}
    assert made.lacking == {}
    assert made.original == given
    copies = Counter(row["augmentation"]["source_line"] for row in made.new if row["label"] == "on")
    assert max(copies.values()) - min(copies.values()) <= 1  # every row of a label as often as the others
    made = augment(given, Numbering(10**6), per_label=3)
    assert Counter(row["label"] for row in made.rows) == {"off": 7, "on": 3}


def test_labels_that_can_not_be_filled_are_told() -> None:
    given = [{"text": "turn on", "label": "on"}, {"text": "turn off", "label": "off"}]
    made = augment(given, Numbering(2), per_label=6)
    assert Counter(row["label"] for row in made.rows) == {"on": 3, "off": 3}
    assert made.lacking == {"on": 3, "off": 3}
    assert made.made == 2 * 10 * 5  # ten for each that is lacking


def test_duplicates_are_dropped_and_counted() -> None:
    given = [{"text": "turn on 1", "label": "on"}, {"text": "turn on", "label": "on"}]

    class Ones(Numbering):
        def __call__(self, requests: Sequence[Request]) -> list[Any]:
            return [{**r.row.values, "text": f"{r.row.texts[0].upper()}, 1!"} for r in requests]

    made = augment(given, Ones(), copies=2)
    assert [row["text"] for row in made.new] == ["TURN ON 1, 1!"]
    assert (made.made, made.dropped) == (4, {"duplicates": 3})
    made = augment(given, Numbering(), copies=2, near_duplicates=0.5)
    assert made.new == []
    assert made.dropped == {"near-duplicates": 4}


def test_filters_judge_what_is_left_and_are_counted() -> None:
    seen: list[int] = []

    class Odd(Filter):
        def __call__(self, rows: Sequence[Any]) -> list[str | None]:
            seen.append(len(rows))
            return ["odd" if int(row.texts[0].split()[-1]) % 2 else None for row in rows]

    given = [{"text": "a"}, {"text": "b"}]
    plain = [row["text"] for row in augment(given, Numbering(), copies=8).new]
    made = augment(given, Numbering(), copies=8, filters=[Leaks([[plain[0]], [plain[3]]]), Odd()])
    assert made.dropped["duplicates of validation or test rows"] == 2
    assert [row["text"] for row in made.new] == [
        text for i, text in enumerate(plain) if i not in (0, 3) and int(text.split()[-1]) % 2 == 0
    ]
    assert seen == [14]
    assert made.made == 16 == len(made.new) + sum(made.dropped.values())


def test_files_columns_and_nothing_to_change(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,review,stars\n1,really good stuff,5\n2,bad,1\n", encoding="utf-8")
    made = augment(tmp_path / "rows.csv", WordEdits(), columns=Columns(text="review", label="stars"), drop=["id"])
    assert made.original == [{"review": "really good stuff", "stars": "5"}, {"review": "bad", "stars": "1"}]
    assert [row["augmentation"]["source_line"] for row in made.new] == [2]
    assert made.unchanged == 1
    assert made.new[0].keys() == {"review", "stars", "augmentation"}


def test_embedded_rows_keep_their_slots() -> None:
    made = augment("sample:relations:train", WordEdits(share=0.3))
    assert isinstance(made, Augmented)
    lines = [row["augmentation"]["source_line"] for row in made.new]
    assert len(lines) > 20
    for row in made.new:
        assert row["text"][row["head"]["start"] : row["head"]["end"]].strip()


class Writer(Numbering):
    keeps_marks = False


class Once(Numbering):
    varies = False


SPAN = {"start": 0, "end": 1, "label": "x"}


@pytest.mark.parametrize(
    ("rows", "method", "options", "message"),
    [
        ([{"text": "a"}], Numbering(), {"copies": 0}, "copies must be at least 1, got 0"),
        ([{"text": "a"}], Numbering(), {"per_label": 0}, "per_label must be at least 1, got 0"),
        ([{"text": "a"}, {"text": " "}], Numbering(), {}, "row 2: 'text' is empty; fix the row"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], Numbering(), {"per_label": 3}, "row 2: has no label to fill up"),
        ([{"text": "a"}], Once(), {"copies": 2}, "'numbering' makes the same of a row each time; ask for 1 copy"),
        ([{"text": "a", "spans": [SPAN]}], Writer(), {}, "row 1: has spans labelled within the text, which can't be"),
        ([{"tokens": ["a"]}], Writer(), {}, "row 1: has tokens labelled within"),
        ([], Numbering(), {}, "the input has no rows"),
    ],
)
def test_mistakes(rows: Any, method: Method, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        augment(rows, method, **options)


def test_spans_that_are_empty_or_dropped_are_none() -> None:
    assert augment([{"text": "a", "spans": []}], Writer()).made == 1
    assert augment([{"text": "a", "spans": [SPAN]}], Writer(), drop=["spans"]).made == 1


def test_a_method_that_makes_the_same_is_tried_once_a_row() -> None:
    made = augment([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], Once(), per_label=20)
    assert made.made == 2
    assert made.lacking == {"x": 16}
