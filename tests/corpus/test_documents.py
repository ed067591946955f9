from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.corpus import reading
from llm_arch.corpus.documents import documents
from llm_arch.corpus.inputs import fingerprint, parts_of
from llm_arch.corpus.parsing import Block, Fault, parse
from llm_arch.types import UserError

tiny_files = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Line ends other than \n and \r\n are characters like any other.
LINES = st.lists(st.text(st.sampled_from("ab \t\u2028\x0bé語\r"), max_size=6), max_size=12)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}


def texts(*inputs: object, **options: object) -> list[str]:
    return [document.text for document in documents([str(name) for name in inputs], **options)]  # type: ignore[arg-type]


def faults(*inputs: object, unit: str = "auto", column: str = "text") -> list[tuple[str, int, str]]:
    found: list[Fault] = []
    for piece in reading.read(parts_of([str(name) for name in inputs], unit), column=column):  # type: ignore[arg-type]
        found += [piece.content] if isinstance(piece.content, Fault) else parse(piece.content)[1]
    return [(Path(source).name, number, why) for source, number, why in found]


def parquet(path: Path, values: list[object], name: str = "text", rows: int = 3) -> Path:
    pq.write_table(pa.table({name: values, "other": list(range(len(values)))}), path, row_group_size=rows)
    return path


@tiny_files
@given(lines=LINES, end=st.sampled_from(["", "\n"]), size=st.integers(1, 40))
def test_a_document_is_a_line(lines: list[str], end: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    raw = ("\n".join(lines) + end).encode()
    path.write_bytes(raw)
    expected = [(i, line.removesuffix("\r")) for i, line in enumerate(raw.decode().split("\n"), 1) if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        assert [(d.number, d.text) for d in documents([str(path)])] == expected


@tiny_files
@given(lines=LINES, size=st.integers(1, 40))
def test_a_document_stands_between_blank_lines(lines: list[str], size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(lines).encode())
    whole = "\n".join("" if not line.strip() else line.removesuffix("\r") for line in lines)
    expected = [text.strip("\n") for text in re.split("\n{2,}", whole) if text.strip("\n")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        assert texts(path, unit="block") == expected


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {i} é" for i in range(2000)]
    pack = COMPRESS[suffix]
    raw = pack(("\n".join(lines[:1500]) + "\n").encode()) + pack("\n".join(lines[1500:]).encode())
    (tmp_path / f"a.txt{suffix}").write_bytes(raw)  # two streams behind one another, as `cat` makes them
    monkeypatch.setattr(reading, "BLOCK_BYTES", 5000)
    assert texts(tmp_path / f"a.txt{suffix}") == lines
    assert texts(tmp_path / f"a.txt{suffix}", unit="file") == ["\n".join(lines)]
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(b'{"text": "one"}\n{"text": "two"}\n'))
    assert texts(tmp_path / f"b.jsonl{suffix}") == ["one", "two"]


@pytest.mark.parametrize("kind", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.parquet", "tree", "hub"])
def test_reading_goes_on_where_any_piece_ended(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 40)
    monkeypatch.setattr(reading, "_ROWS", 2)
    every = [f"text {i}" if i % 7 else f"long text {i} " * 9 for i in range(50)]
    name = str(tmp_path / kind)
    if kind == "tree":
        (tmp_path / kind / "sub").mkdir(parents=True)
        for i, text in enumerate(every):
            (tmp_path / kind / "sub" / f"{i:02}.py").write_text(text)
    elif kind == "a.parquet":
        parquet(tmp_path / kind, list(every), rows=7)
    elif kind == "hub":
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in every))
        name = f"hub:{tmp_path / kind}"
    else:
        lines = every if ".txt" in kind else [json.dumps({"text": t}) for t in every]
        pack = COMPRESS[Path(kind).suffix if kind.count(".") == 2 else ""]
        (tmp_path / kind).write_bytes(pack(("\n".join(lines) + "\n").encode()))
    parts = parts_of([name, str(parquet(tmp_path / "last.parquet", ["the", "end"]))])

    def read(start: reading.Place) -> list[tuple[str, int]]:
        blocks = [piece.content for piece in reading.read(parts, start)]
        return [(d.text, d.number) for block in blocks if isinstance(block, Block) for d in parse(block)[0]]

    pieces = list(reading.read(parts))
    assert len(pieces) > 10
    assert [text for text, _ in read(reading.START)] == [*every, "the", "end"]
    before = 0
    for piece in pieces:
        assert isinstance(piece.content, Block)
        before += len(parse(piece.content)[0])
        assert read(piece.end) == read(reading.START)[before:]
    if kind != "hub":
        done = [piece.read for piece in pieces]
        assert done == sorted(done)
        assert done[-1] == sum(part.size for part in parts)


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\n\n{"text": null}\n{bad\n[1]\n{"text": "  "}\n{"other": 1}\n'
        b'{"text": 3}\n\xff\n{"text": "two\\nlines"}\r\n'
    )
    assert [(d.text, d.number) for d in documents([str(path)])] == [("one", 1), ("two\nlines", 10)]
    assert faults(path) == [
        ("a.jsonl", 3, "no text"),
        ("a.jsonl", 4, "not JSON"),
        ("a.jsonl", 5, "not a JSON object"),
        ("a.jsonl", 6, "no text"),
        ("a.jsonl", 7, "no text"),
        ("a.jsonl", 8, "no text"),
        ("a.jsonl", 9, "not JSON"),
    ]
    assert texts(parquet(tmp_path / "a.parquet", ["x", None, "", "y"])) == ["x", "y"]
    assert faults(tmp_path / "a.parquet") == [("a.parquet", 2, "no text"), ("a.parquet", 3, "no text")]
    assert texts(parquet(tmp_path / "b.parquet", ["x"], name="body"), column="body") == ["x"]


def test_a_column_that_no_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1}\n')
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"body": "x", "id": 1}\n')
    with pytest.raises(UserError, match=r"a.jsonl has no column 'text'; it has: body, id. Name yours with --column"):
        texts(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"b.parquet has no column 'text'; it has: body, other"):
        texts(parquet(tmp_path / "b.parquet", ["x"], name="body"))
    with pytest.raises(UserError, match=r"b.parquet: the column 'other' holds int64, not text"):
        texts(tmp_path / "b.parquet", column="other")
    with pytest.raises(UserError, match=r"hub:.* has no column 'text'; it has: body, id"):
        texts(f"hub:{tmp_path / 'set'}")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"c.parquet is not a readable parquet file"):
        texts(tmp_path / "c.parquet")

    def offline(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError, match=r"hub:no/such/place: the hub could not .* \(ConnectionError: no route\)"):
        texts("hub:no/such/place")


def test_what_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n\n")
    (tmp_path / "binary.txt").write_bytes(b"abc\0def\n" * 9)
    (tmp_path / "latin.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(100_000).hex().encode())[:-50_000])
    for name in ("empty", "blank", "binary", "latin"):
        (tmp_path / f"{name}.md").write_bytes((tmp_path / f"{name}.txt").read_bytes())
    (tmp_path / "cut.md.gz").write_bytes((tmp_path / "cut.txt.gz").read_bytes())
    names = ("empty", "blank", "binary", "latin")
    assert faults(*(tmp_path / f"{name}.txt" for name in names), tmp_path / "cut.txt.gz") == [
        ("empty.txt", 0, "empty"),
        ("blank.txt", 0, "empty"),
        ("binary.txt", 0, "binary"),
        ("latin.txt", 2, "not UTF-8"),
        ("cut.txt.gz", 0, "unreadable"),
    ]
    assert faults(*(tmp_path / f"{name}.md" for name in names), tmp_path / "cut.md.gz") == [
        ("empty.md", 0, "empty"),
        ("blank.md", 0, "empty"),
        ("binary.md", 0, "binary"),
        ("latin.md", 1, "not UTF-8"),
        ("cut.md.gz", 0, "unreadable"),
    ]
    assert texts(tmp_path / "latin.txt") == ["gut"]


def test_a_file_that_breaks_off_keeps_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 10_000)
    lines = [os.urandom(50).hex() for _ in range(4000)]
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-100_000])
    found = texts(tmp_path / "cut.txt.gz")
    assert 100 < len(found) < 4000
    assert found == lines[: len(found)]
    assert faults(tmp_path / "cut.txt.gz") == [("cut.txt.gz", len(found) + 1, "unreadable from here on")]


def test_a_binary_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)
    os.link(tmp_path / "huge.txt", tmp_path / "huge.bin")
    assert faults(tmp_path / "huge.txt", tmp_path / "huge.bin") == [
        ("huge.txt", 0, "binary"),
        ("huge.bin", 0, "binary"),
    ]


def test_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/z.py",
        "b/a.md",
        "a.txt",
        "b/rows.jsonl",
        ".git/config",
        "b/.hidden",
        "b/__pycache__/x.pyc",
        "c/one.json",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"text": "row"}\n' if "json" in name else f"{name} 1\n{name} 2\n")
    Path("b/loop").symlink_to("..", target_is_directory=True)
    Path("b/twice.md").symlink_to("a.md")
    assert texts(".") == [
        "a.txt 1",
        "a.txt 2",
        "b/a.md 1\nb/a.md 2\n",
        "row",
        "b/z.py 1\nb/z.py 2\n",
        '{"text": "row"}\n',  # .json among source code is a file like others
    ]
    assert texts("c/one.json", "b/rows.jsonl") == ["row", "row"]
    assert texts("**/*.py", "a.txt", "b/*.py", "a.t?t") == ["b/z.py 1\nb/z.py 2\n", "a.txt 1", "a.txt 2"]
    assert texts("a.txt", unit="file") == ["a.txt 1\na.txt 2\n"]
    assert texts("b/z.py", unit="line") == ["b/z.py 1", "b/z.py 2"]
    assert [part.name for part in parts_of(["."], without=Path("b"))] == ["a.txt", "c/one.json"]
    parts = parts_of(["b"])
    assert fingerprint(parts) == fingerprint(parts_of(["b"]))
    os.utime("b/z.py", ns=(1, 1))
    assert fingerprint(parts) != fingerprint(parts_of(["b"]))


def test_inputs_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UserError, match=r"none.txt: no such file or folder; check the path, which counts from /"):
        parts_of(["none.txt"])
    with pytest.raises(UserError, match=r"folder: there are no files in it"):
        parts_of(["folder"])
    with pytest.raises(UserError, match=r"\*.txt: there are no files in it"):
        parts_of(["*.txt"])
    with pytest.raises(UserError, match=r"stdlib:doc: .* did you mean one of stdlib, stdlib:source, stdlib:docs\?"):
        parts_of(["stdlib:doc"])
    with pytest.raises(UserError, match="no input is named"):
        parts_of([])
    with pytest.raises(UserError, match="documents must be one of auto, line, block, file, got 'word'"):
        parts_of(["folder"], "word")  # type: ignore[arg-type]
