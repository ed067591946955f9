from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path
from pydoc_data import topics

import pytest

from llm_arch.corpus import stdlib
from llm_arch.corpus.documents import documents
from llm_arch.corpus.stdlib import documentation, library_files


def test_files_are_the_library_alone() -> None:
    names = [path.as_posix() for path in library_files()]
    assert names == sorted(names)
    assert len(names) > 300
    assert sum(name.endswith(("/json/decoder.py", "/textwrap.py", "/asyncio/tasks.py")) for name in names) == 3
    assert not [name for name in names if {"test", "tests", "site-packages", "dist-packages"} & set(name.split("/"))]


def test_docstrings_are_those_that_inspect_finds() -> None:
    path = Path(textwrap.__file__)
    (text,) = documentation(path, path.read_bytes())
    assert text.startswith(f"textwrap\n\n{inspect.getdoc(textwrap)}\n\nclass TextWrapper\n\n")
    for member in (textwrap.TextWrapper, textwrap.TextWrapper.wrap, textwrap.dedent, textwrap.indent):
        assert inspect.getdoc(member) in text
    assert "\n\nTextWrapper.wrap(self, text)\n\n" in text
    assert "\n\nindent(text, prefix, predicate=None)\n\n" in text
    (text,) = documentation(Path(json.__file__), Path(json.__file__).read_bytes())
    assert text.startswith("json\n\n")


def test_topics_are_those_of_help() -> None:
    path = Path(topics.__file__)
    expected = [topics.topics[name] for name in sorted(topics.topics)]
    assert list(documentation(path, path.read_bytes())) == expected


def test_nothing_is_executed(tmp_path: Path) -> None:
    source = b'"""Says what it would do."""\nimport no_such_module\nclass A(f()): "An A."\nraise SystemExit\n'
    assert list(documentation(tmp_path / "a.py", source)) == ["a\n\nSays what it would do.\n\nclass A(f())\n\nAn A.\n"]


@pytest.mark.parametrize("source", [b"def (", b"x = '\\d'\n", b"", b"\0", b"def f(): pass"])
def test_files_without_documentation(source: bytes, tmp_path: Path) -> None:
    assert list(documentation(tmp_path / "a.py", source)) == []


def test_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [path for path in library_files() if path.name in ("topics.py", "textwrap.py", "abc.py")]
    monkeypatch.setattr("llm_arch.corpus.inputs.library_files", lambda: chosen)
    source = list(documents(["stdlib:source"]))
    docs = list(documents(["stdlib:docs"]))
    assert [document.text for document in source] == [path.read_text(encoding="utf-8") for path in chosen]
    assert len(docs) > len(topics.topics)
    assert list(documents(["stdlib"])) == source + docs
    assert stdlib.STDLIB == ("stdlib", "stdlib:source", "stdlib:docs")
