"""Rows out of every kind of source, and what is said of those that can't be read."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_arch.data.sources as module
from llm_arch.data.embedded import SPLITS, Embedded
from llm_arch.data.sources import Row, Source, with_splits
from llm_arch.types import UserError

Read = Callable[..., list[Row]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """All rows of a file with these bytes."""

    def rows(name: str, content: bytes) -> list[Row]:
        path = tmp_path / name
        path.write_bytes(content)
        return list(Source(str(path)).rows())

    return rows


def good(line: int, text: str, label: str) -> Row:
    return Row(line, {"text": text, "label": label}, None)


# Comma-separated


def test_csv_counts_the_lines_of_quoted_newlines(read: Read) -> None:
    found = read("a.csv", b'text,label\r\n"one\ntwo",x\r\n\r\n"say ""hi"", you",y\r\nlast,z')
    assert found == [good(2, "one\ntwo", "x"), good(5, 'say "hi", you', "y"), good(6, "last", "z")]


def test_csv_byte_order_mark_is_no_part_of_the_header(read: Read) -> None:
    assert read("a.csv", b"\xef\xbb\xbftext,label\na,b\n") == [good(2, "a", "b")]


def test_csv_header_may_follow_empty_lines(read: Read) -> None:
    assert read("a.csv", b"\n\ntext,label\na,b\n") == [good(4, "a", "b")]


@pytest.mark.parametrize("cells", ["a", "a,b,c"])
def test_csv_ragged_row(read: Read, cells: str) -> None:
    found = read("a.csv", f"text,label\n{cells}\nc,d\n".encode())
    assert (found[0].line, found[0].fault) == (2, f"has {cells.count(',') + 1} fields where the header has 2")
    assert found[1] == good(3, "c", "d")


def test_csv_stray_quote_spoils_only_its_own_row(read: Read) -> None:
    found = read("a.csv", b'text,label\n"a" b,c\nd,e\n"two\nlines" f,g\nh,i\n')
    assert [row.line for row in found] == [2, 3, 4, 6]
    assert found[0].fault == found[2].fault == "is not valid csv (',' expected after '\"')"
    assert [found[1], found[3]] == [good(3, "d", "e"), good(6, "h", "i")]


def test_csv_open_quote(read: Read) -> None:
    found = read("a.csv", b'text,label\na,b\n"c,d\n')
    assert found == [good(2, "a", "b"), Row(3, {}, "opens a quote that is never closed; close it")]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_bad_bytes_are_named_by_line(read: Read, suffix: str) -> None:
    text = "text,label\ngood,x\nGröße,y\n€ ok,z\n".replace(",", "\t" if suffix == "tsv" else ",")
    found = read(f"a.{suffix}", text.encode().replace("ö".encode(), "ö".encode("latin-1")))
    assert [row.line for row in found] == [2, 3, 4]
    assert [row.fault for row in found] == [None, "is not valid UTF-8; save the file as UTF-8", None]
    assert found[2] == good(4, "€ ok", "z")


def test_bad_bytes_behind_a_quoted_newline(read: Read) -> None:
    found = read("a.csv", b'text,label\n"a\nb\nc",x\n\xff,y\n')
    assert [(row.line, row.fault is None) for row in found] == [(2, True), (5, False)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label,text\na,b,c\n", "line 1: the header names a column twice: text, label, text"),
        (b'"text"x,label\nfoo,bar\n', "line 1: the header is not valid csv (',' expected after '\"')"),
        (b"\nGr\xf6\xdfe,label\na,b\n", "line 2: the header is not valid UTF-8; save the file as UTF-8"),
    ],
    ids=["twice", "quote", "bytes"],
)
def test_csv_header_that_can_not_be_used(read: Read, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"a.csv, {message}")):
        read("a.csv", content)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"text,label\n"], ids=["nothing", "empty lines", "header"])
def test_csv_without_rows(read: Read, content: bytes) -> None:
    assert read("a.csv", content) == []


def test_csv_cell_longer_than_pythons_limit(read: Read) -> None:
    assert read("a.csv", b"text,label\n" + b"a" * 200_000 + b",b\n") == [good(2, "a" * 200_000, "b")]


def test_tsv_quotes_are_plain_characters(read: Read) -> None:
    found = read("a.tsv", b'text\tlabel\n"one, two\tx\n5" disk "a" b\ty\na\n')
    assert found[:2] == [good(2, '"one, two', "x"), good(3, '5" disk "a" b', "y")]
    assert found[2].fault == "has 1 fields where the header has 2"


CELLS = st.text(alphabet='ab",\n é', max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=6))
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("text", "label"), *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(text.getvalue().encode())
    expected, line = [], 2
    for first, second in rows:
        expected.append(good(line, first, second))
        line += 1 + (first + second).count("\n")
    assert list(Source(str(path)).rows()) == expected


# JSON lines


def test_jsonl_faults_name_the_line_and_do_not_stop(read: Read) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "a", "label": 1}',
        b"",
        b'{"text": "a"',
        b"[1, 2]",
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"n": ' + b"1" * 5000 + b"}",
        b'{"text": "half \\ud83d"}',
        b'{"text": "whole \\ud83d\\ude00", "label": null}',
    ]
    found = read("a.jsonl", b"\n".join(lines))
    assert [row.line for row in found] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert found[0] == Row(1, {"text": "a", "label": 1})
    assert [row.fault for row in found[1:-1]] == [
        "is not valid JSON (Expecting ',' delimiter at column 13)",
        "is not a JSON object; write one object a line",
        "is not valid UTF-8; save the file as UTF-8",
        "is nested too deeply",
        "holds a number that is too long",
        "holds half a character (a lone surrogate such as \\ud83d); fix the row",
    ]
    assert found[-1] == Row(9, {"text": "whole 😀", "label": None})


JSON = st.dictionaries(
    st.text(max_size=4),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(max_size=3)),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(JSON, st.booleans()), max_size=5))
def test_jsonl_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[dict[str, Any], bool]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    path.write_bytes(b"".join(json.dumps(v, ensure_ascii=escape).encode() + b"\n" for v, escape in rows))
    assert list(Source(str(path)).rows()) == [Row(i, values) for i, (values, _) in enumerate(rows, start=1)]


# Parquet


def test_parquet(tmp_path: Path) -> None:
    values = [{"text": f"t{i}", "label": None if i % 7 == 0 else i, "tags": ["a"] * (i % 3)} for i in range(2500)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet", row_group_size=700)
    assert list(Source(str(tmp_path / "a.parquet")).rows()) == [Row(i, v) for i, v in enumerate(values, start=1)]


@pytest.mark.parametrize("content", [b"", b"text,label\na,b\n", b"PAR1" + b"x" * 30 + b"PAR1"])
def test_parquet_that_is_none(read: Read, content: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.parquet is not a readable parquet file \("):
        read("a.parquet", content)


# Files that can't be opened


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.csv: no such file; check the path, which counts from /"):
        Source(str(tmp_path / "nothing.csv"))


@pytest.mark.parametrize("name", ["folder.csv", "folder"])
def test_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{re.escape(name)} is a directory; name a file$"):
        Source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.csv.gz"])
def test_suffix_that_nothing_reads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\n")
    with pytest.raises(UserError, match=r"the file name must end in \.csv, \.tsv, \.jsonl, \.parquet$"):
        Source(str(tmp_path / name))


def test_file_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("text,label\na,b\n")
    two.write_text("text,label\na,b\n")
    assert Source(str(one)).fingerprint() == Source(str(two)).fingerprint()
    before = Source(str(one)).fingerprint()
    one.write_text("text,label\na,c\n")
    assert Source(str(one)).fingerprint() != before


# The hub


class FakeHub:
    """Stands for `datasets.load_dataset`: remembers how it was asked, and answers or raises."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, *names: str, split: str) -> Any:
        self.asked.append((*names, split))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], FakeHub]:
    def answer(value: Any) -> FakeHub:
        fake = FakeHub(value)
        monkeypatch.setattr(datasets, "load_dataset", fake)
        return fake

    return answer


def test_hub_class_labels_come_by_name(hub: Callable[[Any], FakeHub]) -> None:
    kind = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": kind, "tags": datasets.List(kind), "stars": datasets.Value("int64")}
    )
    columns = {
        "text": ["a", "b", "c", "d"],
        "label": [1, 0, -1, None],
        "tags": [[0, 1], [], [1], None],
        "stars": [1, 0, 1, 0],
    }
    fake = hub(datasets.Dataset.from_dict(columns, features=features))
    assert list(Source("hub:owner/set:train").rows()) == [
        Row(1, {"text": "a", "label": "pos", "tags": ["neg", "pos"], "stars": 1}),
        Row(2, {"text": "b", "label": "neg", "tags": [], "stars": 0}),
        Row(3, {"text": "c", "label": -1, "tags": ["pos"], "stars": 1}),
        Row(4, {"text": "d", "label": None, "tags": None, "stars": 0}),
    ]
    assert fake.asked == [("owner/set", "train")]


def test_hub_configuration_and_fingerprint(hub: Callable[[Any], FakeHub]) -> None:
    fake = hub(datasets.Dataset.from_dict({"text": ["a"]}))
    first = Source("hub:set:config:test").fingerprint()
    assert fake.asked == [("set", "config", "test")]
    hub(datasets.Dataset.from_dict({"text": ["b"]}))
    assert Source("hub:set:config:test").fingerprint() != first


def test_hub_needs_a_split() -> None:
    with pytest.raises(UserError, match=r"^hub:imdb: name the split too, as in hub:imdb:train$"):
        list(Source("hub:imdb").rows())


def test_hub_errors(hub: Callable[[Any], FakeHub]) -> None:
    hub(ValueError('Unknown split "x". Should be one of [train].\nand more'))
    with pytest.raises(UserError, match=r'^hub:imdb:x: Unknown split "x"\. Should be one of \[train\]\.$'):
        list(Source("hub:imdb:x").rows())
    hub(ValueError())
    with pytest.raises(UserError, match=r"^hub:imdb:x: ValueError$"):
        list(Source("hub:imdb:x").rows())


def test_without_a_network_the_error_says_what_to_do() -> None:
    wanted = (
        r"^hub:nobody/nothing:train: the hub could not provide this set \(ConnectionError\); "
        r"where there is no network, save it as \.jsonl or \.parquet and name that file$"
    )
    with pytest.raises(UserError, match=wanted):
        Source("hub:nobody/nothing:train").fingerprint()


# The embedded set


def test_embedded_splits_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Embedded({"train": [{"text": "a"}], "validation": [], "test": [{"text": "b"}]}, ["a note"])
    monkeypatch.setattr(module, "made", lambda *named: {("smart_home", "", "de"): made}[named])
    source = Source("smart_home:test", "de")
    assert not source.is_file
    assert list(source.rows()) == [Row(1, {"text": "b"})]
    assert source.notes == ["a note"]
    with pytest.raises(UserError, match=r"^smart_home:dev: the embedded set has the splits train, validation, test$"):
        list(Source("smart_home:dev").rows())


@pytest.mark.parametrize(
    ("given_names", "expected"),
    [
        (("smart_home", None, None), ("smart_home:train", "smart_home:validation", "smart_home:test")),
        (("smart_home", "v.csv", None), ("smart_home:train", "v.csv", "smart_home:test")),
        (("t.csv", None, "x.csv"), ("t.csv", None, "x.csv")),
        ((None, None, "smart_home:test"), (None, None, "smart_home:test")),
        ((None, None, None), (None, None, None)),
        (("gettext:de", None, "x.csv"), ("gettext:de:train", "gettext:de:validation", "x.csv")),
        (("stdlib:functions", None, None), tuple(f"stdlib:functions:{split}" for split in SPLITS)),
        (("stdlib:functions:test", None, None), ("stdlib:functions:test", None, None)),
        # Corpora, which are cut into splits.
        (("stdlib:docs", None, None), ("stdlib:docs", None, None)),
        (("stdlib", None, "x.txt"), ("stdlib", None, "x.txt")),
    ],
)
def test_with_splits(given_names: tuple[str | None, ...], expected: tuple[str | None, ...]) -> None:
    named = zip(("train", "validation", "test"), expected, strict=True)
    assert with_splits(*given_names) == {split: name for split, name in named if name}


# Columns inside others


def test_names_with_dots_reach_into_mappings(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"q": {"stem": "why", "more": {"n": 1}}, "q.more.n": 2},
        {"q": {"stem": None}},
        {"q": "no mapping"},
        {"q": [{"stem": "x"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(Source(str(path), columns=("q.stem", "q.more.n", "q")).rows())
    assert found == [Row(1, {**rows[0], "q.stem": "why"}), *(Row(i, row) for i, row in enumerate(rows[1:], start=2))]
    assert list(Source(str(path)).rows()) == [Row(i, row) for i, row in enumerate(rows, start=1)]
