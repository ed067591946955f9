"""`llm-arch test`: a saved model measured on a file with labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def test_verb(here: Path, run: Any, trained: Path) -> Callable[..., Any]:
    return lambda *arguments: run("test", "--model", str(trained / "model"), *arguments)


def test_same_as_at_the_end_of_fit(test_verb: Any, trained: Path) -> None:
    done = test_verb("--data", "test.jsonl", "--output", "found/numbers.json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(Path("found/numbers.json").read_text(encoding="utf-8"))
    assert list(found) == ["split", "metrics", "per_label"]
    assert found["split"] == "test"
    assert found["metrics"] == pytest.approx(json.loads((trained / "metrics.json").read_text())["after"], abs=1e-3)
    assert found["per_label"] == json.loads((trained / "per_label.json").read_text(encoding="utf-8"))


def test_printed(test_verb: Any) -> None:
    done = test_verb("--data", "test.jsonl")
    assert max(map(len, done.out.splitlines())) <= 100
    assert "test.jsonl" in done.out
    assert re.search(r"accuracy +[\d.]+", done.out)
    assert re.search(r"label +precision +recall +f1 +rows", done.out)
    assert "━━━━ " not in done.out  # no progress bar in a file


def test_writes_nothing_unasked(test_verb: Any) -> None:
    before = sorted(path.name for path in Path().rglob("*"))
    assert test_verb("--data", "test.jsonl").code == 0
    assert sorted(path.name for path in Path().rglob("*")) == before


WRONG = {
    "nope.csv": (None, "nope.csv: no such file"),
    "empty.csv": ("text,label\n", "empty.csv has no rows to use; add some, or name another file"),
    "columns.csv": ("text,intent\na,on\n", "columns.csv has no column 'label'; it has: text, intent."),
    "labels.csv": (
        "text,label\na,on\nb,dim\n",
        "labels.csv, line 3: the label 'dim' (1 rows) does not occur in the training rows; known labels: off, on",
    ),
    "blank.csv": ("text,label\n ,on\n", "blank.csv, line 2: 'text' is empty; fix the row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data(test_verb: Any, name: str) -> None:
    content, expected = WRONG[name]
    if content is not None:
        Path(name).write_text(content)
    before = sorted(path.name for path in Path().iterdir())
    assert test_verb("--data", name, "--output", "numbers.json").sentence.startswith(expected)
    assert sorted(path.name for path in Path().iterdir()) == before


def test_output_that_is_a_directory(test_verb: Any) -> None:
    assert test_verb("--data", "test.jsonl", "--output", ".").sentence == "--output . is a directory; name a file"


def test_data_is_needed(test_verb: Any) -> None:
    assert test_verb().sentence == "the following arguments are required: --data; see llm-arch test --help"


def test_embedded_set_needs_its_own_labels(test_verb: Any) -> None:
    assert "does not occur in the training rows" in test_verb("--data", "smart_home:test").sentence
