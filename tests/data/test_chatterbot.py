"""Conversations of the corpus, and of files written here."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

import llm_arch.data.chatterbot as module
from llm_arch.data.chatterbot import _CODES, embedded
from llm_arch.data.embedded import package_folder

pytest.importorskip("chatterbot_corpus")


def test_english() -> None:
    splits = embedded("english", "en").splits
    assert embedded("EN", "en").splits == splits
    openings = []
    for rows in splits.values():
        openings.append({row["messages"][0]["content"].casefold() for row in rows})
        for row in rows:
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert roles
            assert all(message["content"].strip() for message in row["messages"])
    assert len(splits["train"]) > 600
    assert min(map(len, splits.values())) > 50
    assert not any(one & other for one, other in combinations(openings, 2))


def test_every_code_is_of_a_language_that_is_there() -> None:
    root = package_folder("chatterbot", "chatterbot_corpus") / "data"
    assert {path.name for path in root.iterdir()} >= set(_CODES.values())
    assert len(set(_CODES.values())) == len(_CODES)


def test_files_are_read_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data/english"
    folder.mkdir(parents=True)
    turns = "- - Sure?\n  - Yes\n- - 'How   many'\n  - 12\n  - And now\n- - alone\n- - Sure?\n  - yes\n"
    text = f"categories: [a]\nconversations:\n{turns}"
    (folder / "a.yml").write_text(text)
    (folder / "b.yml").write_text("conversations: [")
    monkeypatch.setattr(module, "package_folder", lambda name, package: tmp_path)
    made = embedded("english", "en")
    said = sorted([m["content"] for m in row["messages"]] for rows in made.splits.values() for row in rows)
    assert said == [["How many", "12"], ["Sure?", "Yes"]]
    assert {row["category"] for rows in made.splits.values() for row in rows} == {"a"}
    assert made.notes == ["Files left out because they are no YAML: b.yml."]
