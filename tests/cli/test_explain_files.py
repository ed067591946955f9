"""`llm-arch explain --html --png --json`: files that are complete or not there."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_arch.cli.explain_files import DRAWN


@pytest.fixture
def explained(here: Path, run: Any, trained: Path) -> Callable[..., Any]:
    return lambda *arguments: run("explain", "--model", str(trained), "--method", "occlusion", *arguments)


def test_a_page(explained: Any, trained: Path) -> None:
    done = explained("--text", "on lamp", "<b>off</b>", "--html", "page.html")
    assert (done.code, done.out, done.err) == (0, "", "")
    page = Path("page.html").read_text(encoding="utf-8")
    assert str(trained) in page
    assert "SequenceClassification" in page
    assert page.count("<article") == 2
    assert "&lt;b&gt;off&lt;/b&gt;" in page
    assert "<b>" not in page
    assert '"inside"' not in page


def test_a_page_with_attention(explained: Any) -> None:
    done = explained("--input", "test.jsonl", "--attention", "--html", "page.html")
    assert (done.code, done.out, done.err) == (0, "", "")
    page = Path("page.html").read_text(encoding="utf-8")
    found = [json.loads(one) for one in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert len(found) == 12
    assert all(one["inside"]["sequences"][0]["maps"] and one["inside"]["importance"] for one in found)


def test_all_at_once(explained: Any) -> None:
    done = explained("--text", "on lamp", "--html", "a.html", "--png", "a.png", "--json", "a.jsonl")
    assert (done.code, done.out) == (0, "")
    assert json.loads(Path("a.jsonl").read_text(encoding="utf-8"))["texts"] == {"text": "on lamp"}
    assert Image.open(io.BytesIO(Path("a.png").read_bytes())).format == "PNG"
    assert Path("a.html").stat().st_size > 1000


def test_a_picture_of_many_rows_says_how_many_it_shows(explained: Any) -> None:
    done = explained("--input", "test.jsonl", "--png", "a.png")
    assert done.code == 0
    assert done.out == f"--png a.png shows the first {DRAWN} of 12 rows; --html FILE shows all\n"


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_where_no_file_can_be(explained: Any, option: str) -> None:
    assert explained("--text", "on", option, "no/a").sentence == (
        f"{option} no/a: the folder no does not exist; make it first"
    )
    assert explained("--text", "on", option, ".").sentence == f"{option} . is a directory; name a file"


def test_nothing_is_left_of_what_failed(explained: Any) -> None:
    Path("page.html").write_text("before", encoding="utf-8")
    before = sorted(Path.cwd().iterdir())
    names = ("--html", "page.html", "--png", "a.png", "--json", "a.jsonl")
    assert "unknown label 'dim'" in explained("--text", "on", "--target", "dim", *names).sentence
    assert sorted(Path.cwd().iterdir()) == before
    assert Path("page.html").read_text(encoding="utf-8") == "before"


def test_no_matplotlib(explained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = explained("--text", "on", "--png", "a.png").sentence
    assert sentence == "a picture needs matplotlib: pip install 'llm_arch[plots]'"
    assert explained("--text", "on", "--html", "a.html").code == 0
