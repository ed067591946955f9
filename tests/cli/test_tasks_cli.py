"""Multiple choice, regression and pairs from files to predictions, and what is said of files that can't be used."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.model_directory import read

SKIP = "(or leave such rows out with --data.on_bad_row skip)"
WORDS = ("lamp", "door", "window", "music", "kitchen", "heater", "fan", "light")


def write_lines(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(name: str, rows: list[dict[str, Any]]) -> None:
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def question(i: int) -> dict[str, Any]:
    """Choices inside the question, as in CommonsenseQA."""
    texts = [f"{WORDS[(i + 3 * k) % 8]} {k}" for k in range(2 + i % 3)]
    choices = [{"label": "ABCD"[k], "text": text} for k, text in enumerate(texts)]
    return {
        "answerKey": "AB"[i % 2],
        "id": str(i),
        "question": {"stem": f"which {WORDS[i % 8]} {i}", "choices": choices},
    }


NESTED = {"question_column": "question.stem", "choices_column": "question.choices", "answer_column": "answerKey"}


@pytest.fixture
def fit(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A fit of two steps."""
    monkeypatch.chdir(tmp_path)

    def fit_task(task: str, train: str, *arguments: str, **data: str) -> Any:
        given = [part for name, value in data.items() for part in (f"--data.{name}", value)]
        base = ("-c", f"task/{task}", "-c", "backbone/tiny", "--data.train", train, "--data.validation_fraction", "0.2")
        few = ("--trainer.max_steps", "2", "--data.batch_size", "8", "--output", "out")
        return run("fit", *base, *given, *few, *arguments)

    return fit_task


def lines(done: Any) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    assert done.err == ""
    return [json.loads(line) for line in done.out.splitlines()]


def test_multiple_choice(fit: Any, run: Any) -> None:
    rows = [question(i) for i in range(40)]
    write_lines("a.jsonl", rows)
    done = fit("multiple_choice", "a.jsonl", **NESTED)
    assert done.code == 0, done.err
    assert "--input FILE.jsonl" in done.out
    assert set(json.loads(Path("out/metrics.json").read_text())["after"]) == {"accuracy", "loss"}
    assert not Path("out/per_label.json").exists()
    card = Path("out/model/README.md").read_text(encoding="utf-8")
    assert card.startswith("# MultipleChoice\n")
    assert "predict --model out/model --input your.jsonl" in card

    write_lines("b.jsonl", [{"question": row["question"]} for row in rows[:5]])
    found = lines(run("predict", "--model", "out/model", "--input", "b.jsonl"))
    assert len(found) == 5
    for row, line in zip(rows, found, strict=False):
        texts = {choice["label"]: choice["text"] for choice in row["question"]["choices"]}
        assert list(line) == ["question.stem", "question.choices", "label", "text", "score", "scores"]
        assert (line["question.stem"], line["question.choices"]) == tuple(row["question"].values())
        assert list(line["scores"]) == list(texts)
        assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert line["text"] == texts[line["label"]]
        assert line["score"] == max(line["scores"].values())

    done = run("test", "--model", "out/model", "--data", "a.jsonl", "--output", "test.json")
    assert done.code == 0, done.err
    labels = [line["label"] for line in lines(run("predict", "--model", "out/model", "--input", "a.jsonl"))]
    right = sum(label == row["answerKey"] for label, row in zip(labels, rows, strict=True))
    assert json.loads(Path("test.json").read_text())["metrics"]["accuracy"] == pytest.approx(right / 40)

    assert run("predict", "--model", "out/model", "--text", "which lamp").sentence == (
        "this model takes question.stem and question.choices; give them as columns of a file with --input"
    )
    write_lines("b.jsonl", [{"question": rows[0]["question"]}, {"question": {"stem": "why", "choices": ["only"]}}])
    assert run("predict", "--model", "out/model", "--input", "b.jsonl", "--output", "p.jsonl").sentence == (
        "b.jsonl, line 2: has 1 choice ('question.choices'); a question needs two or more"
    )
    assert not Path("p.jsonl").exists()


def test_multiple_choice_with_a_column_each(fit: Any, run: Any) -> None:
    rows = [
        {"question": f"q {i}", "a": "lamp", "b": "door", "c": "fan" * (i % 2), "answer": "ab"[i % 2]} for i in range(30)
    ]
    write_csv("a.csv", rows)
    assert fit("multiple_choice", "a.csv", choice_columns="[a, b, c]").code == 0
    found = lines(run("predict", "--model", "out/model", "--input", "a.csv"))
    assert [list(line["scores"]) for line in found[:2]] == [["a", "b"], ["a", "b", "c"]]


CHOICES = {
    "one": ({"choices": ["x"]}, "has 1 choice ('choices'); a question needs two or more"),
    "none": ({"choices": []}, "has no choices ('choices'); a question needs two or more"),
    "twice": ({"choices": ["x", "x"]}, "'choices' has the choice 'x' twice; fix the row"),
    "range": ({"answer": 7}, "'answer' is 7, but the choices are numbered from 0 to 1"),
    "unknown": ({"answer": "z"}, "'answer' holds 'z', which is none of the choices: 'x', 'y'"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_bad_choices(fit: Any, name: str) -> None:
    change, fault = CHOICES[name]
    row = {"question": "q", "choices": ["x", "y"], "answer": 0}
    write_lines("a.jsonl", [row, row | change])
    assert fit("multiple_choice", "a.jsonl").sentence == f"a.jsonl, line 2: {fault} {SKIP}"
    assert not Path("out").exists()


def test_regression(fit: Any, run: Any) -> None:
    rows = [{"review": f"{WORDS[i % 8]} {i}", "stars": 1000 + 10 * (i % 8)} for i in range(40)]
    write_csv("a.csv", rows)
    done = fit("regression", "a.csv", text_column="review", text_pair_column="null", target_column="stars")
    assert done.code == 0, done.err
    assert set(json.loads(Path("out/metrics.json").read_text())["after"]) == {
        "pearson",
        "spearman",
        "rmse",
        "mae",
        "loss",
    }
    mean, deviation = read(Path("out/model"))["label_space"]["moments"]
    assert (1000 < mean < 1070, 5 < deviation < 40) == (True, True)
    (line,) = lines(run("predict", "--model", "out/model", "--text", "lamp 3"))
    assert list(line) == ["review", "value"]
    assert abs(line["value"] - mean) < 3 * deviation
    done = run("test", "--model", "out/model", "--data", "a.csv", "--output", "test.json")
    assert done.code == 0, done.err
    values = [line["value"] for line in lines(run("predict", "--model", "out/model", "--input", "a.csv"))]
    error = sum(abs(value - row["stars"]) for value, row in zip(values, rows, strict=True)) / 40
    assert json.loads(Path("test.json").read_text())["metrics"]["mae"] == pytest.approx(error, rel=1e-3)


NUMBERS = {
    "text": ("many", "a.csv, line 3: 'target' holds 'many', which is no number; fix the row " + SKIP),
    "nan": ("NaN", "a.csv, line 3: 'target' holds 'NaN', which is no finite number; fix the row " + SKIP),
    "infinite": ("-inf", "a.csv, line 3: 'target' holds '-inf', which is no finite number; fix the row " + SKIP),
    "constant": (
        "2",
        "a.csv: 'target' is 2 in all training rows, so there is nothing to learn; name another column with "
        "--data.target_column",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_bad_numbers(fit: Any, name: str) -> None:
    cell, sentence = NUMBERS[name]
    write_csv("a.csv", [{"text": f"t{i}", "target": cell if i == 1 else 2} for i in range(8)])
    done = fit("regression", "a.csv", text_pair_column="null", target_column="target")
    assert done.sentence == sentence
    assert not Path("out").exists()


def test_pairs_as_in_nli(fit: Any, run: Any) -> None:
    names = ("contradiction", "entailment", "neutral")
    rows = [
        {"premise": f"the {WORDS[i % 8]} {i}", "hypothesis": f"it {names[i % 3]}", "label": names[i % 3]}
        for i in range(60)
    ]
    write_lines("a.jsonl", rows)
    pair = {"text_column": "premise", "text_pair_column": "hypothesis"}
    assert fit("text_classification", "a.jsonl", **pair).code == 0
    found = lines(run("predict", "--model", "out/model", "--input", "a.jsonl"))
    assert list(found[0]) == ["premise", "hypothesis", "label", "score", "scores"]
    assert set(found[0]["scores"]) == set(names)
    done = run("test", "--model", "out/model", "--data", "a.jsonl", "--output", "test.json")
    assert done.code == 0, done.err
    right = sum(line["label"] == row["label"] for line, row in zip(found, rows, strict=True))
    assert json.loads(Path("test.json").read_text())["metrics"]["accuracy"] == pytest.approx(right / 60)
