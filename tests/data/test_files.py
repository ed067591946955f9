"""Rows of csv files in which quotes are never closed: named by line, and what is behind them is read. (The other files:
test_sources.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llm_arch.data.files as module
from llm_arch.data.files import Row, read_delimited
from llm_arch.types import UserError

OPEN = "opens a quote that is never closed; close it"
Read = Callable[[str], list[Row]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """All rows of a csv file with these lines behind its header."""

    def rows(content: str) -> list[Row]:
        path = tmp_path / "a.csv"
        path.write_text(f"text,label\n{content}", encoding="utf-8", newline="")
        return list(read_delimited(path))

    return rows


def good(line: int, *cells: str) -> Row:
    return Row(line, dict(zip(("text", "label"), cells, strict=True)))


def bad(line: int) -> Row:
    return Row(line, {}, OPEN)


def test_the_lines_behind_an_open_quote_are_rows(read: Read) -> None:
    assert read('a,b\n"c,d\ne,f\r\n\ng,h') == [good(2, "a", "b"), bad(3), good(4, "e", "f"), good(6, "g", "h")]


def test_every_open_quote_is_named(read: Read) -> None:
    assert read('"a,b\n"c,d\ne,f\ng,"h\n"i",j\n"') == [
        bad(2),
        bad(3),
        good(4, "e", "f"),
        bad(5),
        good(6, "i", "j"),
        bad(7),
    ]


@pytest.mark.parametrize(
    "behind",
    ['"i, j",k', 'i,"j, k"', '"i\nj",k', 'i,"""j"" k"', '"",i\nj,"k l"'],
    ids=["first", "last", "lines", "quoted", "empty"],
)
def test_a_quoted_cell_behind_it_closes_nothing(read: Read, behind: str) -> None:
    alone = read(f"a,b\n-,-\nc,d\n{behind}\ne,f\n")
    assert all(row.fault is None for row in alone)
    assert read(f'a,b\n-,"-\nc,d\n{behind}\ne,f\n') == [bad(3) if row.line == 3 else row for row in alone]


def test_the_line_is_that_of_the_quote_and_not_of_the_row(read: Read) -> None:
    assert read('"a\nb, c\nd","e\nf,g\n') == [bad(4), good(5, "f", "g")]


def test_a_stray_quote_spoils_its_own_row_alone(read: Read) -> None:
    found = read('"a\nb" c,d\ne,f\n"g" h,i\nj,k\n')
    assert [(row.line, row.fault is None) for row in found] == [(2, False), (4, True), (5, False), (6, True)]
    assert all("',' expected after" in row.fault for row in found if row.fault)


@pytest.mark.parametrize("header", ['text,"label', '"text,label\na,"b c"'])
def test_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"\n{header}\na,b\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}, line 2: the header {OPEN}')}$"):
        list(read_delimited(path))


def test_tabs_have_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a\tb\nc\t"d\n', encoding="utf-8")
    assert list(read_delimited(path)) == [good(2, '"a', "b"), good(3, "c", '"d')]


WORD = st.text(alphabet="ab ", min_size=1, max_size=4)
QUOTED = st.tuples(WORD, st.text(alphabet='ab,"\n', max_size=5)).map("".join)
CELL = st.one_of(WORD, QUOTED)
LINE = st.one_of(st.tuples(CELL, CELL), st.sampled_from(['"x', 'x,"x', '"x,x', 'x,"x""']))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=12))
def test_good_rows_survive_whatever_is_open_between_them(read: Read, lines: list[tuple[str, str] | str]) -> None:
    content, expected, line = "", [], 2
    for cells in lines:
        if isinstance(cells, str):
            content += cells + "\n"
            expected.append(bad(line))
        else:
            written = [f'"{c.replace(chr(34), chr(34) * 2)}"' if set(c) & set(',"\n') else c for c in cells]
            content += ",".join(written) + "\n"
            expected.append(good(line, *cells))
        line = 2 + content.count("\n")
    assert read(content) == expected


@pytest.mark.parametrize("line", ['"x', 'x","y', 'x",",""', "x,y", '"x\ny"z'])
def test_no_line_is_read_more_than_twice(read: Read, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    class Counted(module._Lines):
        def __next__(self) -> str:
            nonlocal count
            found = super().__next__()
            count += 1
            return found

    monkeypatch.setattr(module, "_Lines", Counted)
    content = f"{line}\n" * 500
    read(f'"{content}')
    assert count <= 2 * (content.count("\n") + 1)
