"""Relations from files to predictions: fit, test, predict with given entities and with those of another model."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.cli.main import main

TINY = ("-c", "backbone/tiny", "--trainer.max_steps", "2", "--data.batch_size", "8")
WORDS = ("lamp", "door", "window", "music", "kitchen", "heater", "fan", "light")


def row(i: int, label: str) -> dict[str, Any]:
    one, other = WORDS[i % 8], WORDS[(i + 3) % 8]
    text = f"{i} the {one} near a {other} ."
    places = [{"start": text.index(word), "end": text.index(word) + len(word)} for word in (one, other)]
    return {"text": text, "head": places[0], "tail": places[1], "label": label}


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return name


def semeval(rows: list[dict[str, Any]], labels: bool = True) -> str:
    blocks = []
    for i, one in enumerate(rows, start=1):
        text, (a, b), (c, d) = one["text"], one["head"].values(), one["tail"].values()
        marked = f"{text[:a]}<e1>{text[a:b]}</e1>{text[b:c]}<e2>{text[c:d]}</e2>{text[d:]}"
        blocks.append(f'{i}\t"{marked}"\n' + (f"{one['label']}\nComment:\n" if labels else ""))
    return "\n".join(blocks)


def fit(*arguments: str) -> str:
    """What a fit printed, which had nothing to complain about."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["fit", *arguments]) == 0, err.getvalue()
    assert err.getvalue() == ""
    return out.getvalue()


LABELS = ("Near(e1,e2)", "Near(e2,e1)", "Other")
ROWS = [row(i, LABELS[i % 3]) for i in range(30)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a model of relations in `out`, one that finds entities in `ner`, and rows."""
    folder = tmp_path_factory.mktemp("relations")
    with contextlib.chdir(folder):
        Path("train.TXT").write_text(semeval(ROWS), encoding="utf-8")
        write("test.jsonl", ROWS[:6])
        spans = [
            {"text": r["text"], "spans": [{**r["head"], "label": "thing"}, {**r["tail"], "label": "thing"}]}
            for r in ROWS
        ]
        write("spans.jsonl", spans)
        task = ("-c", "task/relation_extraction", *TINY, "--data.train", "train.TXT", "--data.test", "test.jsonl")
        Path("printed.txt").write_text(fit(*task, "--output", "out"), encoding="utf-8")
        ner = ("-c", "task/ner", *TINY, "--data.train", "spans.jsonl", "--data.spans_column", "spans")
        more = ("--trainer.max_steps", "60", "--model.learning_rate", "0.01")
        fit(*ner, *more, "--output", "ner")
    return folder


@pytest.fixture
def predict(home: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> Callable[..., Any]:
    monkeypatch.chdir(home)
    return lambda *arguments: run("predict", "--model", "out/model", *arguments)


def lines(done: Any) -> list[dict[str, Any]]:
    assert (done.code, done.err) == (0, ""), done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_what_a_fit_leaves(home: Path) -> None:
    metrics = json.loads((home / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["after"]) == {"macro_f1", "micro_f1", "accuracy", "loss"}
    assert set(json.loads((home / "out" / "per_label.json").read_text(encoding="utf-8"))) == {"Near", "Other"}
    assert "--input FILE.jsonl" in (home / "printed.txt").read_text(encoding="utf-8")


def test_given_entities(predict: Callable[..., Any]) -> None:
    found = lines(predict("--input", "test.jsonl"))
    assert [{k: line[k] for k in ("text", "head", "tail")} for line in found] == [
        {k: r[k] for k in ("text", "head", "tail")} for r in ROWS[:6]
    ]
    for line in found:
        assert list(line) == ["text", "head", "tail", "label", "score", "scores"]
        assert set(line["scores"]) == set(LABELS)
        assert line["score"] == line["scores"][line["label"]] == max(line["scores"].values())


def test_semeval_files_without_relations_are_predicted_alike(predict: Callable[..., Any]) -> None:
    Path("plain.txt").write_text(semeval(ROWS[:6], labels=False), encoding="utf-8")
    one, other = lines(predict("--input", "plain.txt")), lines(predict("--input", "test.jsonl"))
    assert [line["label"] for line in one] == [line["label"] for line in other]
    assert [line["head"] for line in one] == [line["head"] for line in other]


def test_a_saved_model_is_measured(predict: Callable[..., Any], run: Callable[..., Any]) -> None:
    done = run("test", "--model", "out/model", "--data", "test.jsonl", "--output", "measured.json")
    assert (done.code, done.err) == (0, "")
    after = json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))["after"]
    assert json.loads(Path("measured.json").read_text(encoding="utf-8"))["metrics"] == pytest.approx(after, abs=1e-4)


def test_entities_of_another_model(predict: Callable[..., Any]) -> None:
    texts = [ROWS[1]["text"], "nothing", ROWS[2]["text"]]
    ner = ("--ner", "ner/model")
    found = lines(predict(*ner, "--with-negative", "--text", *texts))
    assert [line["text"] for line in found] == texts
    for line in found:
        assert list(line) == ["text", "entities", "relations"]
        for entity in line["entities"]:
            assert line["text"][entity["start"] : entity["end"]] == entity["text"]
        count = len(line["entities"])
        assert len(line["relations"]) == count * (count - 1) // 2
        for relation in line["relations"]:
            assert list(relation) == ["head", "tail", "label", "score"]
            assert relation["head"] in line["entities"]
            assert relation["tail"] in line["entities"]
            assert relation["label"] in ("Near", "Other")
    assert sum(len(line["relations"]) for line in found) > 0
    write("texts.jsonl", [{"text": text, "more": 1} for text in texts])
    assert lines(predict(*ner, "--with-negative", "--input", "texts.jsonl")) == found
    some = lines(predict(*ner, "--text", *texts))
    for line, whole in zip(some, found, strict=True):
        assert line["relations"] == [r for r in whole["relations"] if r["label"] != "Other"]


# What can't be


def test_bad_options(predict: Callable[..., Any], run: Callable[..., Any]) -> None:
    said = "--with-negative is about the pairs of entities that --ner finds; name a model with --ner"
    assert predict("--with-negative", "--text", "a").sentence == said
    said = "this model takes text and head and tail; give them as columns of a file with --input"
    assert predict("--text", "a").sentence == said
    done = run("predict", "--model", "ner/model", "--ner", "ner/model", "--text", "a")
    assert done.sentence == (
        "ner/model is a model of TokenClassification, which takes no entities; --ner goes with a model of relations"
    )
    said = "--ner out/model is a model of RelationExtraction, which finds no entities; name one trained with task/ner"
    assert predict("--ner", "out/model", "--text", "a b").sentence == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"head": {"start": 3, "end": 99}}, "'head' goes from 3 to 99, but the text has 27 characters, end exclusive"),
        (
            {"head": ROWS[1]["tail"]},
            "'head' and 'tail' are the same characters (18 to 25, 18 to 25); give two entities",
        ),
        ({"tail": None}, "has no 'tail'"),
    ],
)
def test_bad_rows_are_named_by_line(predict: Callable[..., Any], values: dict[str, Any], said: str) -> None:
    good = {k: v for k, v in ROWS[1].items() if k != "label"}
    write("bad.jsonl", [good, {**good, **values}])
    done = predict("--input", "bad.jsonl", "--output", "predicted.jsonl")
    assert done.sentence.startswith(f"bad.jsonl, line 2: {said}")
    assert not Path("predicted.jsonl").exists()


def test_a_fit_on_bad_files_leaves_nothing(predict: Callable[..., Any], run: Callable[..., Any]) -> None:
    def said_of(*arguments: str) -> str:
        done = run("fit", "-c", "task/relation_extraction", *TINY, *arguments, "--output", "none")
        assert not Path("none").exists()
        return str(done.sentence)

    Path("unmarked.txt").write_text('1\t"The <e1>sea</e1> alone."\nOther\n', encoding="utf-8")
    assert said_of("--data.train", "unmarked.txt") == (
        "unmarked.txt, line 1: has no <e2>; mark both entities once, as in <e1>storm</e1> and <e2>flood</e2> "
        "(or leave such rows out with --data.on_bad_row skip)"
    )
    write("new.jsonl", [{**ROWS[0], "label": "Far"}])
    assert said_of("--data.train", "train.TXT", "--data.validation", "new.jsonl") == (
        "new.jsonl, line 1: the label 'Far' (1 rows) does not occur in the training rows; "
        "known labels: Near(e1,e2), Near(e2,e1), Other"
    )
    assert said_of("--data.train", "train.TXT", "--model.head.negative", "none") == (
        "negative is 'none', which is none of the labels: Near(e1,e2), Near(e2,e1), Other"
    )
    assert said_of("--data.train", "test.jsonl", "--data.max_length", "5").startswith(
        "data.max_length is 5, but the markers"
    )
