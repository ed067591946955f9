"""Question answering from the command line: SQuAD files in, a tuned threshold kept, answers with their places out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_arch.inference import Predictor

PLACES = ("kitchen", "garden", "attic", "cellar", "garage", "office")
THINGS = ("lamp", "cat", "radio", "heater", "ladder")


def questions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Where something is; each third context does not say it."""
    rows = []
    for i in range(first, first + count):
        thing, place = THINGS[i % 5], PLACES[i % 6]
        context = f"Number {i}: the {thing} is in the {place} today." + " It rains." * (i % 4)
        if i % 3 == 0:
            context = context.replace(f"in the {place} ", "broken ")
        answer = [] if i % 3 == 0 else [{"text": place, "answer_start": context.index(place)}]
        rows.append({"id": str(i), "question": f"Where is the {thing}?", "context": context, "answers": answer})
    return rows


def squad(path: Path, rows: list[dict[str, Any]]) -> None:
    paragraphs = [{"context": r["context"], "qas": [{k: v for k, v in r.items() if k != "context"}]} for r in rows]
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}))


FIT = ("-c", "task/question_answering", "-c", "backbone/tiny", "--data.max_length", "24", "--data.stride", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on SQuAD files; not to be changed."""
    from llm_arch.cli.main import main

    home = tmp_path_factory.mktemp("qa")
    for name, count, first in (("train", 90, 0), ("validation", 30, 90), ("test", 24, 120)):
        squad(home / f"{name}.json", questions(count, first))
    files = [
        part for name in ("train", "validation", "test") for part in (f"--data.{name}", str(home / f"{name}.json"))
    ]
    options = ("--model.learning_rate", "3e-3", "--trainer.max_epochs", "4", "--data.batch_size", "8")
    assert main(["fit", *FIT, *files, *options, "--output", str(home / "out")]) == 0
    return home


def test_the_threshold_is_tuned_on_validation_rows_and_kept(model: Path, run: Any) -> None:
    kept = float(load_file(model / "out" / "model" / "head.safetensors")["null_threshold"])
    assert kept != 0
    done = run("test", "--model", str(model / "out/model"), "--data", str(model / "test.json"))
    assert (done.code, done.err) == (0, "")
    after = json.loads((model / "out" / "metrics.json").read_text())["after"]
    for name in ("exact_match", "f1", "exact_match_answerable", "f1_answerable"):
        assert f"{after[name]:.4f}" in next(line for line in done.out.splitlines() if line.split()[:1] == [name])


def test_predictions(model: Path, run: Any, tmp_path: Path) -> None:
    rows = questions(8, 200)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({k: r[k] for k in ("question", "context")}) + "\n" for r in rows)
    )
    squad(tmp_path / "rows.json", rows)
    done = run("predict", "--model", str(model / "out/model"), "--input", str(tmp_path / "rows.jsonl"))
    assert (done.code, done.err) == (0, "")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert run("predict", "--model", str(model / "out/model"), "--input", str(tmp_path / "rows.json")).out == done.out
    predictor = Predictor(model / "out" / "model")
    threshold = predictor.model.head.null_threshold
    for line, row, prediction in zip(found, rows, predictor.stream(rows), strict=True):
        assert list(line) == ["question", "context", "answer", "start", "end", "score", "null_score", "alternatives"]
        assert {k: line[k] for k in ("question", "context")} == {k: row[k] for k in ("question", "context")}
        assert {k: v for k, v in line.items() if k not in row} == json.loads(json.dumps(prediction.to_dict()))
        best = line if line["answer"] else line["alternatives"][0]
        assert (line["start"] is None) == (line["null_score"] > best["score"] * float(threshold.exp()))
        for one in [best, *line["alternatives"]]:
            assert one["answer"] == row["context"][one["start"] : one["end"]] != ""


def test_data_without_unanswerable_questions_is_always_answered(run: Any, tmp_path: Path) -> None:
    rows = [row for row in questions(60) if row["answers"]]
    squad(tmp_path / "train.json", rows)
    data = ("--data.train", str(tmp_path / "train.json"), "--trainer.max_steps", "1", "--before", "false")
    assert run("fit", *FIT, *data, "--output", str(tmp_path / "out")).code == 0
    assert float(load_file(tmp_path / "out" / "model" / "head.safetensors")["null_threshold"]) == float("inf")
    done = run("predict", "--model", str(tmp_path / "out/model"), "--input", str(tmp_path / "train.json"))
    assert all(json.loads(line)["answer"] for line in done.out.splitlines())


BAD = {
    "no json": ('{"data": [}', "bad.json is not valid JSON (Expecting value at line 1, column 11); fix it, or"),
    "other json": ("[]", "bad.json is not in the format of SQuAD: it has no list 'data'; write"),
    "no answers": (
        '{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b"}]}]}]}',
        "bad.json has no column 'answers'; it has: question, context, id. Name yours with --data.question_column, ",
    ),
    "wrong place": (
        '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": "b", "id": "x", '
        '"answers": [{"text": "b", "answer_start": 1}]}]}]}]}',
        "bad.json, line 1: the answer 'b' does not stand at character 1 of the context, but at 2; fix the row (or",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_leave_nothing(here: Path, run: Any, kind: str) -> None:
    content, expected = BAD[kind]
    Path("bad.json").write_text(content)
    done = run("fit", *FIT, "--data.train", "bad.json", "--output", "out")
    assert done.sentence.startswith(expected)
    assert not Path("out").exists()


def test_what_prediction_needs(model: Path, run: Any, tmp_path: Path) -> None:
    place = str(model / "out/model")
    expected = "this model takes question and context; give them as columns of a file with --input"
    assert run("predict", "--model", place, "--text", "Where?").sentence == expected
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Where?", "context": "Here."}\n{"question": "Where?", "context": " "}\n')
    assert run("predict", "--model", place, "--input", str(path)).sentence == (
        f"{path}, line 2: 'context' is empty; fix the row"
    )
    path.write_text(json.dumps({"question": "Where? " * 20, "context": "Here."}) + "\n")
    assert run("predict", "--model", place, "--input", str(path)).sentence.startswith(
        f"{path}, line 1: the question takes 43 of data.max_length 24 tokens, too many for windows"
    )


def test_an_infinite_threshold_is_no_damage(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all questions have answers none is left out; such a run can be gone on with, as can its model."""
    monkeypatch.chdir(tmp_path)
    squad(Path("rows.json"), [row for row in questions(30) if row["answers"]])
    files = ("--data.train", "rows.json", "--data.validation", "rows.json")
    steps = ("--before", "false", "--trainer.max_steps")
    assert run("fit", *FIT, *files, *steps, "1", "--output", "out").code == 0
    assert float(load_file("out/model/head.safetensors")["null_threshold"]) == float("inf")
    assert run("fit", *FIT, *files, *steps, "2", "--output", "out", "--resume", "auto").code == 0
    assert run("fit", *FIT, *files, *steps, "1", "--output", "more", "--start", "out").code == 0
