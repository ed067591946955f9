"""`llm-arch augment` as a user sees it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.augmentation import WordEdits, augment
from llm_arch.augmentation.rows import Columns
from llm_arch.cli.augment import _COLUMNS
from llm_arch.data import MaskedTokenData, NextTokenData
from llm_arch.data.sources import Source
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.inference import save
from llm_arch.task import Task
from llm_arch.types import LabelSpace

WORDS = ("augment", "--input", "train.jsonl", "--method", "words")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(printed: str) -> dict[str, int]:
    """The table at the end."""
    lines = [line.rsplit(maxsplit=1) for line in printed.splitlines() if line.strip()]
    return {name.strip(): int(count.replace(",", "")) for name, count in (line for line in lines if line[-1].isdigit())}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> dict[str, str]:
    home = tmp_path_factory.mktemp("augment")
    made = {}
    for name, backbone, head, data in (
        ("masked", "tiny:bert", MaskedLanguageModel, MaskedTokenData),
        ("causal", "tiny:gpt2", LanguageModel, NextTokenData),
    ):
        torch.manual_seed(0)
        task = Task(backbone, head, LabelSpace(()))
        made[name] = str(save(task.eval(), data(tokenizer=tokenizer, max_length=32), home / name))
    return made


def test_rows_are_written_with_the_original_ones_first(run: Callable[..., Any], here: Path) -> None:
    done = run(*WORDS, "--output", "more.jsonl", "--copies", "2", "--seed", "3", "--share", "0.4")
    assert (done.code, done.err) == (0, ""), done.err
    given, found = read(here / "train.jsonl"), read(here / "more.jsonl")
    expected = augment("train.jsonl", WordEdits(share=0.4), copies=2, seed=3)
    assert found == given + expected.new
    counted = numbers(done.out)
    assert counted["read"] == 60
    assert counted["written"] == len(found)
    assert counted["new rows kept"] == len(expected.new) == counted["new rows made"] - counted["dropped: duplicates"]
    first = (here / "more.jsonl").read_bytes()
    again = run(*WORDS, "--output", "again.jsonl", "--copies", "2", "--seed", "3", "--share", "0.4")
    assert again.code == 0
    assert (here / "again.jsonl").read_bytes() == first


def test_only_new_rows_as_csv_that_can_be_read_again(run: Callable[..., Any], here: Path) -> None:
    done = run(*WORDS, "--output", "new.csv", "--only-new")
    assert done.code == 0, done.err
    with (here / "new.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(json.loads(row["augmentation"])["method"] == "words" for row in rows)
    assert [row.values["text"] for row in Source("new.csv").rows()] == [row["text"] for row in rows]
    done = run("augment", "--input", "new.csv", "--method", "words", "--output", "twice.csv")
    assert done.code == 0, done.err
    with (here / "twice.csv").open(encoding="utf-8", newline="") as file:
        assert [row["augmentation"] for row in csv.DictReader(file)][: len(rows)] == [
            row["augmentation"] for row in rows
        ]


def test_labels_are_filled(run: Callable[..., Any], here: Path) -> None:
    done = run(*WORDS, "--output", "more.jsonl", "--per-label", "35", "--share", "0.4")
    assert done.code == 0, done.err
    assert Counter(row["label"] for row in read(here / "more.jsonl")) == {"off": 35, "on": 35}
    (here / "few.jsonl").write_text('{"text": "go on", "label": "on"}\n', encoding="utf-8")
    done = run("augment", "--input", "few.jsonl", "--method", "words", "--output", "x.jsonl", "--per-label", "50")
    assert done.code == 0
    assert "labels that could not be filled: on lacks" in done.err


def test_nothing_leaks(run: Callable[..., Any], here: Path) -> None:
    plain = run(*WORDS, "--output", "plain.jsonl", "--only-new", "--share", "0.4")
    assert plain.code == 0
    made = [row["text"] for row in read(here / "plain.jsonl")]
    for name, texts in (("validation", made[:3]), ("test", made[3:5])):
        (here / f"{name}.jsonl").write_text("".join(json.dumps({"text": t.upper() + "!"}) + "\n" for t in texts))
    evaluation = ("--validation", "validation.jsonl", "--test", "test.jsonl")
    done = run(*WORDS, "--output", "safe.jsonl", "--only-new", "--share", "0.4", *evaluation)
    assert done.code == 0, done.err
    assert [row["text"] for row in read(here / "safe.jsonl")] == made[5:]
    assert numbers(done.out)["dropped: duplicates of validation or test rows"] == 5


def test_embedded_sets_bring_their_evaluation_rows(run: Callable[..., Any], here: Path, monkeypatch: Any) -> None:
    from llm_arch.augmentation import filters

    seen = []
    before = filters.Leaks.__init__

    def note(self: Any, rows: Any, near: Any = None) -> None:
        seen.extend(rows)
        before(self, seen, near)

    monkeypatch.setattr(filters.Leaks, "__init__", note)
    done = run("augment", "--input", "sample:similarity", "--method", "words", "--output", "more.jsonl")
    assert done.code == 0, done.err
    for split in ("validation", "test"):
        rows = [row.values for row in Source(f"sample:similarity:{split}").rows()]
        assert rows
        assert {(row["text"], row["text_pair"]) for row in rows} <= set(seen)


def test_a_classifier_has_to_agree(run: Callable[..., Any], here: Path, trained: Path) -> None:
    judge = ("--agree", str(trained / "model"))
    done = run(*WORDS, "--output", "kept.jsonl", "--copies", "3", "--only-new", *judge, "--min-score", "0.5")
    assert done.code == 0, done.err
    kept = read(here / "kept.jsonl")
    (here / "kept_labels.jsonl").write_text((here / "kept.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    predicted = run("predict", "--model", str(trained / "model"), "--input", "kept_labels.jsonl")
    assert [json.loads(line)["label"] for line in predicted.out.splitlines()] == [row["label"] for row in kept]


@pytest.mark.parametrize("method", ["masked", "continuation", "back-translation"])
def test_methods_with_models(run: Callable[..., Any], here: Path, models: dict[str, str], method: str) -> None:
    given = {
        "masked": ("--model", models["masked"], "--top-k", "3"),
        "continuation": ("--model", models["causal"], "--max-new-tokens", "4", "--template", "{label} it:"),
        "back-translation": ("--model", models["causal"], models["causal"], "--beams", "1", "--max-new-tokens", "3"),
    }[method]
    (here / "few.jsonl").write_text(
        "".join((here / "train.jsonl").read_text().splitlines(keepends=True)[:4]), encoding="utf-8"
    )
    done = run("augment", "--input", "few.jsonl", "--method", method, "--output", "more.jsonl", *given)
    assert (done.code, done.err) == (0, ""), done.err
    rows = read(here / "more.jsonl")
    assert len(rows) > 4
    assert {row["augmentation"]["method"] for row in rows[4:]} == {method}


def test_column_names_are_those_of_columns() -> None:
    assert tuple(_COLUMNS) == Columns._fields
    assert tuple(_COLUMNS) == Columns()


def test_names_of_columns_and_dropped_ones(run: Callable[..., Any], here: Path) -> None:
    row = {"sentence": "turn on it", "intent": "on", "spans": [{"start": 0, "end": 4, "label": "x"}]}
    (here / "named.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    names = ("--text-column", "sentence", "--label-column", "intent", "--per-label", "2", "--drop", "spans")
    done = run("augment", "--input", "named.jsonl", "--method", "words", "--output", "more.csv", *names)
    assert done.code == 0, done.err
    assert (here / "more.csv").read_text(encoding="utf-8").startswith("sentence,intent,augmentation\nturn on it,on,\n")


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "suffix": (("--output", "more.txt"), "--output more.txt: the file name must end in .jsonl or .csv"),
    "input": (("--output", "train.jsonl", "--overwrite"), "--output train.jsonl is the file of --input; name a new"),
    "validation": (
        ("--output", "held.jsonl", "--validation", "./held.jsonl", "--overwrite"),
        "--output held.jsonl is the file of --validation",
    ),
    "named": (("--output", "my_test.jsonl"), "--output my_test.jsonl is named as validation or test rows"),
    "exists": (("--output", "other.jsonl"), "--output other.jsonl exists; name another file, or replace it"),
    "folder": (("--output", "no/more.jsonl"), "--output no/more.jsonl: the folder no does not exist"),
    "both": (("--copies", "2", "--per-label", "3"), "--copies and --per-label both say how many rows to make"),
    "copies": (("--copies", "0"), "copies must be at least 1, got 0"),
    "score": (("--min-score", "0.5"), "--min-score is about the classifier of --agree; name one"),
    "model": (("--model", "x"), "--method words takes no --model, got 1"),
    "masked": (("--method", "masked"), "--method masked takes one --model DIR, got 0"),
    "two": (("--method", "back-translation", "--model", "x"), "takes two model directories: --model THERE BACK, got 1"),
    "option": (("--top-k", "3"), "--top-k is an option of masked, continuation, back-translation; --method words has"),
    "method": (("--method", "wrods"), "argument --method: invalid choice: 'wrods'"),
    "unknown": (("--coppies", "2"), "unknown option --coppies; did you mean --copies?"),
    "share": (("--share", "3"), "share must be in (0, 1], got 3.0"),
    "near": (("--near-duplicates", "3"), "near_duplicates must be in (0, 1], got 3.0"),
    "missing": (("--input", "nope.jsonl"), "nope.jsonl: no such file"),
    "no model": (("--method", "masked", "--model", "nope"), "nope"),
    "bad line": (("--input", "bad.jsonl"), "bad.jsonl, line 2: is not valid JSON"),
    "bad row": (("--input", "empty.jsonl"), "empty.jsonl, line 1: 'text' is empty; fix the row"),
    "bad spans": (("--input", "spans.jsonl"), "spans.jsonl, line 1: 'spans' has a span from 0 to 99"),
    "bad held": (("--validation", "bad.jsonl"), "bad.jsonl, line 2: is not valid JSON"),
    "column": (("--text-column", "sentence"), "train.jsonl, line 1: has no 'sentence'; it has: text, label"),
    "list": (
        ("--input", "list.jsonl", "--output", "more.csv"),
        "more.csv: 'tokens' holds a list or mapping, which a .csv",
    ),
    "no label": (("--input", "list.jsonl", "--per-label", "9"), "list.jsonl, line 1: has no label to fill up"),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes(run: Callable[..., Any], here: Path, name: str) -> None:
    for file, line in (
        ("other.jsonl", ""),
        ("held.jsonl", '{"text": "a"}\n'),
        ("bad.jsonl", '{"text": "turn it on", "label": "on"}\n{"text": \n'),
        ("empty.jsonl", '{"text": " "}\n'),
        ("spans.jsonl", '{"text": "a", "spans": [{"start": 0, "end": 99, "label": "x"}]}\n'),
        ("list.jsonl", '{"tokens": ["go", "on"], "tags": ["O", "O"]}\n'),
    ):
        (here / file).write_text(line, encoding="utf-8")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    options, message = CASES[name]
    given = dict(zip(WORDS[1::2], WORDS[2::2], strict=True)) | {"--output": "more.jsonl"}
    rest = list(options)
    for option in ("--input", "--output", "--method"):
        if option in rest:
            place = rest.index(option)
            given[option] = rest[place + 1]
            del rest[place : place + 2]
    done = run("augment", *(word for pair in given.items() for word in pair), *rest)
    assert message in done.sentence
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
