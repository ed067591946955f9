"""What is kept on disk is made once, in chunks, whole or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_arch.data.store import cache_root, key_of, stored

SCHEMA = pa.schema([("x", pa.int64()), ("words", pa.list_(pa.string()))])
Make = Callable[[dict[str, Any]], Iterator[dict[str, list[Any]]]]


def chunk(*numbers: int) -> dict[str, list[Any]]:
    return {"x": list(numbers), "words": [[str(n)] * (n % 3) for n in numbers]}


def left_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_made_once_and_given_back(tmp_path: Path) -> None:
    calls = []

    def make(facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        calls.append(1)
        facts["seen"] = {"ä": [1, 2]}
        yield chunk(0, 1)
        yield chunk(2)
        facts["done"] = True

    for _ in range(3):
        rows, facts = stored(tmp_path / "new" / "root", "key", SCHEMA, make)
        assert rows[:] == {"x": [0, 1, 2], "words": [[], ["1"], ["2", "2"]]}
        assert facts == {"seen": {"ä": [1, 2]}, "done": True}
    assert calls == [1]
    assert left_in(tmp_path / "new" / "root") == ["key"]
    stored(tmp_path / "new" / "root", "other", SCHEMA, make)
    assert calls == [1, 1]


def test_rows_are_memory_mapped(tmp_path: Path) -> None:
    rows, _ = stored(tmp_path, "key", SCHEMA, lambda facts: iter([chunk(1)]))
    assert [Path(file["filename"]) for file in rows.cache_files] == [tmp_path / "key" / "rows.arrow"]


def test_every_chunk_is_written_before_the_next_is_asked_for(tmp_path: Path) -> None:
    sizes = []

    def make(facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for i in range(5):
            yield chunk(*range(1000 * i, 1000 * (i + 1)))
            (file,) = tmp_path.glob("*/rows.arrow")
            sizes.append(file.stat().st_size)

    rows, _ = stored(tmp_path, "key", SCHEMA, make)
    assert all(size >= 8 * 1000 * (i + 1) for i, size in enumerate(sizes))
    assert rows["x"][:] == list(range(5000))


def test_no_rows(tmp_path: Path) -> None:
    rows, facts = stored(tmp_path, "key", SCHEMA, lambda facts: iter([]))
    assert (len(rows), rows.column_names, facts) == (0, ["x", "words"], {})


def broken(facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
    yield chunk(1)
    raise RuntimeError("no more")


def of_another_type(facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
    yield chunk(1)
    yield {"x": ["text"], "words": [[]]}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [(broken, RuntimeError, "no more"), (of_another_type, pa.ArrowInvalid, "Could not convert 'text'")],
)
def test_what_fails_leaves_nothing(tmp_path: Path, make: Make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stored(tmp_path, "key", SCHEMA, make)
    assert left_in(tmp_path) == []
    rows, _ = stored(tmp_path, "key", SCHEMA, lambda facts: iter([chunk(7)]))
    assert rows["x"][:] == [7]


def test_an_unfinished_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "rows.arrow").write_bytes(b"half")
    rows, _ = stored(tmp_path, "key", SCHEMA, lambda facts: iter([chunk(7)]))
    assert rows["x"][:] == [7]


def test_who_asks_at_once_waits_for_the_first(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls, found = [], []

    def make(facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        calls.append(1)
        begun.set()
        assert go_on.wait(10)
        yield chunk(7)

    def ask() -> None:
        found.append(stored(tmp_path, "key", SCHEMA, make)[0]["x"][:])

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert begun.wait(10)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(10)
    assert (calls, found) == ([1], [[7], [7]])


def test_key_of() -> None:
    assert key_of({"b": [1, None], "a": "ä"}) == hashlib.sha256('{"a": "ä", "b": [1, null]}'.encode()).hexdigest()[:32]
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of({"a": v}) for v in (1, 2, "1", None, [1], True, 1.5)}) == 7


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_ARCH_CACHE", str(tmp_path / "given"))
    assert cache_root() == tmp_path / "given"
    monkeypatch.delenv("LLM_ARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "llm_arch"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "llm_arch"
