"""Whether a column's name is wrong, or some rows lack it. (All else of reading rows: test_data_format.)"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.data import TextClassificationData, TokenClassificationData
from llm_arch.types import UserError

Make = Callable[..., TextClassificationData]
Write = Callable[..., str]
GOOD = {"text": "w1", "label": "a"}


def wrong_name(path: str, column: str, found: str) -> str:
    options = "--data.text_column, --data.label_column"
    return f"^{re.escape(f'{path} has no column {column!r}; it has: {found}. Name yours with {options} and the like')}$"


def test_first_rows_that_lack_a_column_are_bad_rows_where_others_have_it(make_data: Make, write_rows: Write) -> None:
    rows = [{"label": "a"}, {"note": 1}, *[GOOD] * 1500, {"text": "w1"}]
    stored, facts = make_data(on_bad_row="skip").load_source(write_rows(rows))
    assert stored["line"][:] == list(range(3, 1503))
    assert facts["bad"] == [[1, "has no 'text'"], [2, "has no 'text'"], [1503, "has no 'label'"]]


def test_a_chunk_of_rows_may_lack_it(make_data: Make, write_rows: Write) -> None:
    _, facts = make_data(on_bad_row="skip").load_source(write_rows([*[{"label": "a"}] * 1200, GOOD]))
    assert (facts["rows"], facts["bad_rows"]) == (1, 1200)


@pytest.mark.parametrize("count", [1, 1200])
def test_a_column_that_no_row_has_is_named_wrong(make_data: Make, write_rows: Write, count: int) -> None:
    path = write_rows([{"body": "w1", "label": "a"}, *[{"body": "w1", "label": None}] * count])
    with pytest.raises(UserError, match=wrong_name(path, "text", "body, label")):
        make_data(on_bad_row="skip").load_source(path)


def test_where_nothing_is_left_out_the_first_row_decides(make_data: Make, write_rows: Write) -> None:
    path = write_rows([{"body": "w1"}, GOOD])
    with pytest.raises(UserError, match=wrong_name(path, "text", "body")):
        make_data().load_source(path)


def test_a_line_that_can_not_be_read_has_no_columns(make_data: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text"\n{"body": "w1", "label": "a"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=wrong_name(str(path), "text", "body, label")):
        make_data(str(path), on_bad_row="skip").load_source(str(path))


def test_rows_that_are_bad_for_several_reasons(make_data: Make, write_rows: Write) -> None:
    path = write_rows([{"label": "a"}, {"text": "w1"}])  # each column stands somewhere
    with pytest.raises(UserError, match=r"has no rows to use \(2 bad rows were skipped\)"):
        make_data(on_bad_row="skip").load_source(path)


def test_the_first_row_says_which_columns_are_meant(words: str, write_rows: Write, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"tokens": ["w1"]}, {"text": "w1"}, {"text": "w1", "spans": []}]
    options: dict[str, Any] = {"tokenizer": words, "cache_dir": str(tmp_path / "cache"), "on_bad_row": "skip"}
    _, facts = TokenClassificationData(**options).load_source(write_rows(rows))
    assert facts["bad"] == [[1, "has no 'tags'"], [2, "has no 'spans'"]]
