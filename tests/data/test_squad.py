"""SQuAD's nested json: its questions as rows, and files that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_arch.data.answers import Names
from llm_arch.data.squad import read_squad
from llm_arch.types import UserError

FILE = {
    "version": "v2.0",
    "data": [
        {
            "title": "A",
            "paragraphs": [
                {
                    "context": "The cat sat.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "The cat", "answer_start": 0}]},
                        {
                            "id": "2",
                            "question": "Why?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "sat", "answer_start": 8}],
                        },
                    ],
                },
                {"context": "Nothing is asked here.", "qas": []},
            ],
        },
        {"title": "B", "paragraphs": [{"context": "A dog.", "qas": [{"id": "3", "question": "What?"}]}]},
    ],
}


def write(folder: Path, values: Any) -> Path:
    path = folder / "file.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def question(**values: Any) -> dict[str, Any]:
    return {"data": [{"paragraphs": [{"context": "The cat sat.", "qas": [{"id": "1", "question": "Who?"} | values]}]}]}


def test_every_question_is_a_row(tmp_path: Path) -> None:
    rows = list(read_squad(write(tmp_path, FILE), Names()))
    assert [(row.line, row.fault) for row in rows] == [(1, None), (2, None), (3, None)]
    assert [row.values["id"] for row in rows] == ["1", "2", "3"]
    assert rows[0].values == {
        "question": "Who?",
        "context": "The cat sat.",
        "answers": [{"text": "The cat", "answer_start": 0}],
        "id": "1",
    }
    assert rows[1].values["answers"] == []
    assert "answers" not in rows[2].values  # nothing is known of them, which is not that there are none


def test_columns_are_named_as_asked(tmp_path: Path) -> None:
    (row,) = read_squad(write(tmp_path, question(answers=[])), Names("q", "text", "golds", id=None))
    assert row.values == {"q": "Who?", "text": "The cat sat.", "golds": []}


def test_bytes_in_front_are_no_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + json.dumps(FILE))
    assert len(list(read_squad(path, Names()))) == 3


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (
            {"answers": [{"text": "sat", "answer_start": 8}], "is_impossible": True},
            "has answers although is_impossible is true; fix the row",
        ),
        ({"question": "half \ud83d"}, r"holds half a character (a lone surrogate such as \ud83d); fix the row"),
    ],
)
def test_questions_that_cannot_be_read(tmp_path: Path, values: dict[str, Any], fault: str) -> None:
    (row,) = read_squad(write(tmp_path, question(**values)), Names())
    assert row.fault == fault


def test_a_question_that_is_none(tmp_path: Path) -> None:
    file = {"data": [{"paragraphs": [{"context": "The cat sat.", "qas": ["Who?"]}]}]}
    (row,) = read_squad(write(tmp_path, file), Names())
    assert row.fault == "holds str instead of a question; fix the file"


HINT = "; write data[].paragraphs[] with a context and qas[], or one question a line as .jsonl"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "it has no list 'data'"),
        ({"rows": []}, "it has no list 'data'"),
        ({"data": [{"question": "Who?"}]}, "data[0] has no list 'paragraphs'"),
        ({"data": [FILE["data"][0], {"paragraphs": [{"context": "x"}]}]}, "data[1].paragraphs[0] has no list 'qas'"),  # type: ignore[index]
        ({"data": [3]}, "data[0] has no list 'paragraphs'"),
    ],
)
def test_other_json(tmp_path: Path, values: Any, message: str) -> None:
    path = write(tmp_path, values)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path} is not in the format of SQuAD: {message}{HINT}')}$"):
        list(read_squad(path, Names()))


def test_what_is_no_json_is_said_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, '{"data": [\n  {"paragraphs": ]}')
    expected = (
        f"{path} is not valid JSON (Expecting value at line 2, column 18); "
        "fix it, or let its name end in .jsonl if it has one object a line"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        list(read_squad(path, Names()))
    path.write_bytes(b'{"data": "\xff"}')
    with pytest.raises(UserError, match="is not valid UTF-8; save the file as UTF-8$"):
        list(read_squad(path, Names()))
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"is not valid JSON \(RecursionError\); fix the file$"):
        list(read_squad(path, Names()))
    path.write_text('{"data": ' + "9" * 5000 + "}")
    with pytest.raises(UserError, match=r"is not valid JSON \(ValueError\); fix the file$"):
        list(read_squad(path, Names()))
