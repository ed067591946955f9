"""CoNLL-style files: against a naive reader, and what is said of files that are something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.data.conll import Columns, read_conll, usual_tag
from llm_arch.data.sources import Row
from llm_arch.types import UserError

Read = Callable[..., list[Row]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def rows(content: str | bytes, token: int = 0, tag: int = -1, delimiter: str | None = None) -> list[Row]:
        path = tmp_path / "a.conll"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_conll(path, Columns(token, tag, delimiter)))

    return rows


def sentence(lines: tuple[int, ...], tokens: str, tags: str | None = None) -> Row:
    values = {"tokens": tokens.split()} | ({} if tags is None else {"tags": tags.split()})
    return Row(lines[0], values, None, lines)


TOKENS = st.sampled_from(["a", "é", "#", "#x", "北京", '"', ",", "|", "-", "'s", "B-x", "O", "\u00a0y"])
TAGS = st.sampled_from(["O", "B-per", "I-per", "B-creative-work", "S-x", "L-x"])
SENTENCES = st.lists(st.lists(st.tuples(TOKENS, TAGS), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SENTENCES, st.sampled_from(["\t", " ", "  \t", ";"]), st.sampled_from(["\n", "\r\n"]), st.integers(0, 3))
def test_what_was_written_comes_back(
    read: Read, sentences: list[list[tuple[str, str]]], delimiter: str, newline: str, more: int
) -> None:
    """With other columns between, and the delimiter found unless it is an odd one."""
    lines: list[str] = []
    expected = []
    for words in sentences:
        numbers = tuple(range(len(lines) + 1, len(lines) + 1 + len(words)))
        lines += [delimiter.join([token, *["x"] * more, tag]) for token, tag in words] + ["", "\t"][: 1 + more % 2]
        expected.append(
            Row(numbers[0], {"tokens": [t for t, _ in words], "tags": [t for _, t in words]}, None, numbers)
        )
    content = newline.join(lines)
    assert read(content, delimiter=";" if delimiter == ";" else None) == expected
    assert read(content + newline * 3, token=-2 - more, tag=more + 1, delimiter=delimiter[-1]) == expected


def test_comments_and_documents_are_no_tokens(read: Read) -> None:
    found = read(
        "\ufeff# a comment\n"
        "-DOCSTART-\tO\n"
        "\n"
        "# text = # O what\n"
        "# sent_id = O\n"
        "#\tO\n"
        "#nice\tB-tag\n"
        "\n\n"
        "#\thttps://somewhere\t2020\n"
        "#begin document (a); part 0\n"
        "on\tO\n"
        "# in between\n"
        "off\tO\n"
        "#end document\n"
        "it\tO\n"
    )
    assert found == [
        sentence((6, 7), "# #nice", "O B-tag"),
        sentence((12, 14), "on off", "O O"),
        sentence((16,), "it", "O"),
    ]


def test_comments_between_spaces(read: Read) -> None:
    found = read("# newdoc\n-DOCSTART- -X- O\n\n# newpar\n# NN O\nthing NN B-x\n\n# O O\n")
    assert found == [sentence((5, 6), "# thing", "O B-x"), sentence((8,), "#", "O")]
    # In place of a tab, a space is a fault and no comment, which nobody would see.
    assert [row.fault for row in read("a\tO\n\n# O\n\nb\tO\n")] == [
        None,
        "has 1 columns where the file has 2; fix the line",
        None,
    ]


def test_one_column_has_no_tags(read: Read) -> None:
    assert read("# a comment\n#\nturn\non\n\noff\n", token=1) == [
        sentence((2, 3, 4), "# turn on"),
        sentence((6,), "off"),
    ]


@pytest.mark.parametrize("content", ["", "\n \n", "# a comment\n\n", "-DOCSTART- O\n"])
def test_nothing(read: Read, content: str) -> None:
    assert read(content) == []


def test_a_bad_line_spoils_its_sentence_alone(read: Read) -> None:
    found = read(b"a\tO\nb\nc\tO\tO\n\nd\tO\n\nok\tO\n\xff\tO\n\nf\tO\n\tO\n\n \tO\n\ng\tO\n")
    assert found == [
        Row(2, {}, "has 1 columns where the file has 2; fix the line"),
        sentence((5,), "d", "O"),
        Row(8, {}, "is not valid UTF-8; save the file as UTF-8"),
        Row(11, {}, "has no token; fix the line"),
        Row(13, {}, "has no token; fix the line"),
        sentence((15,), "g", "O"),
    ]


PAIR = "EU\tB-org\nsays\tO\n,\tO\n\nPeter\tB-per\n"
NONE = "no column holds tags such as O or B-person: texts without tags belong into a .jsonl file"


def looks(separated: str, options: str) -> str:
    return f"it looks separated by {separated} with tags in column 1: set {options}"


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "commas for tabs": (PAIR, {"delimiter": ","}, looks("tabs", r"--data.delimiter '\t'")),
    "tabs for commas": (PAIR.replace(",", ".").replace("\t", ","), {}, looks("commas", "--data.delimiter ','")),
    "tabs for spaces": (PAIR.replace("\t", " "), {"delimiter": "\t"}, looks("spaces", "--data.delimiter ' '")),
    "bars": ("a|B-x|n\nb|O|n\n", {}, looks("bars", "--data.delimiter '|' --data.tag_column 1")),
    "another column": ("EU B-org N\nsays O V\n", {}, looks("spaces", "--data.tag_column 1")),
    "prose": ("Peter lives in Berlin.\nHe works there a lot.\n", {}, NONE),
    "one sentence": ("Peter lives in Berlin.\n", {}, NONE),
    "parts of speech": ("EU NNP\nsays VB\n", {}, NONE),
    "json": ('{"text": "EU says"}\n{"text": "so"}\n', {}, "it looks like JSON lines: let its name end in .jsonl"),
    "csv": ("text,label\na b,on\nc,off\n", {}, "it looks like comma-separated values: let its name end in .csv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_says_what_it_looks_like(read: Read, name: str) -> None:
    content, options, expected = WRONG[name]
    with pytest.raises(UserError, match=rf"a\.conll does not hold a token and its tag a line; {re.escape(expected)}$"):
        read(content, **options)


def test_a_delimiter_as_a_shell_hands_it_on(read: Read) -> None:
    assert read("New York\tB-x\n", delimiter="\\t") == [Row(1, {"tokens": ["New York"], "tags": ["B-x"]}, None, (1,))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag": 2}, "data.tag_column is 2, but the file has 2 columns (0 to 1)"),
        ({"token": -3}, "data.token_column is -3, but the file has 2 columns (0 to 1)"),
        ({"token": 1}, "data.token_column and data.tag_column name the same column; the tags need one"),
    ],
)
def test_columns_that_are_not_there(read: Read, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        read(PAIR, **options)


def test_usual_tag() -> None:
    assert [usual_tag(f"{prefix}-x") for prefix in "LUWM"] == ["E-x", "S-x", "S-x", "I-x"]
    for tag in ("B-x", "O", "LOC", "M", "", "-"):
        assert usual_tag(tag) == tag
