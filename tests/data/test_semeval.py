"""Files of SemEval-2010 Task 8: sentences, their entities, and everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.data.semeval import Names, read_semeval
from llm_arch.data.sources import Row

NAMES = Names("text", "head", "tail", "label")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "TRAIN_FILE.TXT"


def shown(row: Row) -> tuple[int, str, str, str, str | None]:
    """Line, text, the words of head and tail, and the relation."""
    assert row.fault is None, row.fault
    text = row.values["text"]
    words = [text[row.values[name]["start"] : row.values[name]["end"]] for name in ("head", "tail")]
    return row.line, text, words[0], words[1], row.values["label"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blocks(path: Path, end: str) -> None:
    lines = [
        '7\t"The <e1>storm</e1> caused a <e2>flood</e2>."',
        "Cause-Effect(e1,e2)",
        "Comment: of course",
        "",
        '8\t"«<e1>Ça</e1>» is "said" of a <e2>big dog</e2>."',
        "Other",
        "Comment:",
        "",
        '9\t"<e2>Walls</e2> of the <e1>house</e1>"',
        "Component-Whole(e2,e1)",
    ]
    path.write_bytes(("\ufeff" + end.join(lines)).encode())
    assert list(map(shown, read_semeval(path, NAMES))) == [
        (1, "The storm caused a flood.", "storm", "flood", "Cause-Effect(e1,e2)"),
        (5, '«Ça» is "said" of a big dog.', "Ça", "big dog", "Other"),
        (9, "Walls of the house", "house", "Walls", "Component-Whole(e2,e1)"),
    ]


def test_sentences_without_relations(path: Path) -> None:
    """As the task's own test file has them, a line each; and with names of the user's own."""
    path.write_text('1\t"A <e1>b</e1> <e2>c</e2>."\n2\t<e1>d</e1><e2>e</e2>\n\n3\t"<e1>f</e1> g <e2>h</e2>"\n')
    rows = list(read_semeval(path, Names("t", "a", "b", "r")))
    assert [row.values for row in rows] == [
        {"t": "A b c.", "a": {"start": 2, "end": 3}, "b": {"start": 4, "end": 5}, "r": None},
        {"t": "de", "a": {"start": 0, "end": 1}, "b": {"start": 1, "end": 2}, "r": None},
        {"t": "f g h", "a": {"start": 0, "end": 1}, "b": {"start": 4, "end": 5}, "r": None},
    ]
    assert [row.line for row in rows] == [1, 2, 4]


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [
        ("<e1>a</e1> b", "has no <e2>; mark both entities once, as in <e1>storm</e1> and <e2>flood</e2>"),
        ("a <e1>b <e2>c</e2>", "has no </e1>; mark both"),
        ("a b", "has no <e1>; mark both"),
        ("<e1>a</e1> <e1>b</e1> <e2>c</e2>", "has 2 <e1>; mark both"),
        (
            "<e1>a <e2>b</e1> c</e2>",
            "has its markers in the order <e1> <e2> </e1> </e2>, so that entities overlap; mark both",
        ),
        ("<e1>a <e2>b</e2> c</e1>", "has its markers in the order <e1> <e2> </e2> </e1>, so that entities overlap"),
        ("</e1>a<e1> <e2>b</e2>", "has its markers in the order </e1> <e1> <e2> </e2>, so"),
    ],
)
def test_wrong_markers(path: Path, sentence: str, fault: str) -> None:
    path.write_text(
        f'1\t"<e1>x</e1> <e2>y</e2>"\nOther\n\n2\t"{sentence}"\nOther\n\n3\t"<e1>x</e1> <e2>y</e2>"\nOther\n'
    )
    good, bad, also_good = read_semeval(path, NAMES)
    assert (good.fault, also_good.fault) == (None, None)
    assert (bad.line, bad.values) == (4, {})
    assert bad.fault is not None
    assert bad.fault.startswith(fault)


def test_lines_that_belong_nowhere(path: Path) -> None:
    path.write_text('text alone\n1\t"<e1>x</e1> <e2>y</e2>"\nOther\nOther again\n\nlost\n')
    first, good, again, lost = read_semeval(path, NAMES)
    neither = (
        "which is neither a sentence of SemEval-2010 Task 8 (a number, a tab and the text) nor the relation of one"
    )
    assert (first.line, first.fault) == (1, f"holds 'text alone', {neither}")
    assert shown(good) == (2, "x y", "x", "y", "Other")
    assert (again.line, again.fault) == (4, f"holds 'Other again', {neither}")
    assert (lost.line, lost.fault) == (6, f"holds 'lost', {neither}")


def test_bytes_that_are_no_utf8(path: Path) -> None:
    path.write_bytes(b'1\t"<e1>caf\xe9</e1> <e2>y</e2>"\nOther\n\n2\t"<e1>x</e1> <e2>y</e2>"\ncaf\xe9\n')
    assert [row.fault for row in read_semeval(path, NAMES)] == ["is not valid UTF-8; save the file as UTF-8"] * 2


def test_an_empty_file(path: Path) -> None:
    path.write_text("\n\n")
    assert list(read_semeval(path, NAMES)) == []


_PIECE = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='<>"\ufeff'), min_size=1
)


@given(st.lists(_PIECE, min_size=5, max_size=5), st.booleans())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], swapped: bool) -> None:
    path = tmp_path_factory.mktemp("semeval") / "a.txt"
    before, first, between, second, after = pieces
    one, two = ("e2", "e1") if swapped else ("e1", "e2")
    path.write_text(
        f'1\t"{before} <{one}>{first}</{one}> {between} <{two}>{second}</{two}> {after}"\nR({one},{two})\n',
        encoding="utf-8",
    )
    (row,) = read_semeval(path, NAMES)
    head, tail = (second, first) if swapped else (first, second)
    assert shown(row) == (1, f"{before} {first} {between} {second} {after}", head, tail, f"R({one},{two})")
