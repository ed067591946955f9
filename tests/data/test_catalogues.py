"""Translations read from compiled catalogues, against a catalogue written here and Python's own reader."""

from __future__ import annotations

import gettext
import re
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import llm_arch.data.catalogues as module
from llm_arch.data.catalogues import embedded
from llm_arch.data.embedded import package_folder

pytestmark = pytest.mark.skipif(find_spec("django") is None, reason="needs django's files")

HEADER = "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=3; plural=(n==1 ? 0 : n<5 ? 1 : 2);\n"


def catalogue(path: Path, entries: dict[str, str], order: str = "<") -> None:
    """A .mo file as the manual of GNU gettext describes it."""
    entries = dict(sorted({"": HEADER, **entries}.items()))
    keys, values = ([text.encode() for text in part] for part in (entries, entries.values()))
    start = 28 + 16 * len(keys)
    tables, data = b"", b""
    for texts in (keys, values):
        for text in texts:
            tables += struct.pack(f"{order}2I", len(text), start + len(data))
            data += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 28 + 16 * len(keys))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + tables + data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_contexts_plurals_and_white_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    entries = {
        "Delete": "Löschen",
        "menu\x04Delete": "Entfernen",
        "menu\x04Open": "Öffnen",
        "%(n)d hour\0%(n)d hours": "%(n)d A\0%(n)d B\0%(n)d C",
        "\n  Two\n lines  %s ": "Zwei\n Zeilen %s",
        "%s": "%s",
        "Empty": "",
    }
    catalogue(tmp_path / "conf/locale/pl_PL/LC_MESSAGES/django.mo", entries, order)
    catalogue(
        tmp_path / "contrib/admin/locale/pl_PL/LC_MESSAGES/django.mo", {"Delete": "später", "More": "Mehr"}, order
    )
    catalogue(tmp_path / "conf/locale/en/LC_MESSAGES/django.mo", {}, order)
    monkeypatch.setattr(module, "package_folder", lambda name, package: tmp_path)
    found = {row["source"]: row["target"] for rows in embedded("pl-pl", "en").splits.values() for row in rows}
    assert found == {
        "Delete": "Löschen",
        "Open": "Öffnen",
        "%(n)d hour": "%(n)d A",
        "%(n)d hours": "%(n)d C",
        "Two lines %s": "Zwei Zeilen %s",
        "More": "Mehr",
    }
    with pytest.raises(ValueError, match=r"gettext:en: there is no catalogue of this language; there are: pl_PL$"):
        embedded("en", "en")


@pytest.mark.parametrize("language", ["de", "fr", "ja", "zh_Hans", "pt_BR", "ru"])
def test_against_pythons_reader(language: str) -> None:
    path = package_folder("gettext", "django") / "conf/locale" / language / "LC_MESSAGES/django.mo"
    with path.open("rb") as file:
        theirs = gettext.GNUTranslations(file)
    made = embedded(language, "en")
    rows = [row for split in made.splits.values() for row in split]
    assert len(rows) > 600
    assert {"Monday", "Enter a valid email address."} <= {row["source"] for row in rows}
    agree = [theirs.gettext(row["source"]) == row["target"] for row in rows]
    assert sum(agree) > 250  # others are of other catalogues, have a context, or are plurals


def test_placeholders_are_kept() -> None:
    rows = [row for split in embedded("de", "en").splits.values() for row in split]
    named = re.compile(r"%\(\w+\)[sd]")
    with_names = [row for row in rows if named.search(row["source"])]
    assert len(with_names) > 30
    kept = [set(named.findall(row["target"])) <= set(named.findall(row["source"])) for row in with_names]
    assert all(kept)


def test_django_is_not_imported() -> None:
    embedded("fr", "en")
    assert "django.conf" not in sys.modules
