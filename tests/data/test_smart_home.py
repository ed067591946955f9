"""The embedded data set: splits, spans, notes and errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

import llm_arch.data.smart_home as module
from llm_arch.data.embedded import Embedded
from llm_arch.data.smart_home import CAPS, smart_home
from llm_arch.types import UserError

pytest.importorskip("hassil")
bundled = pytest.importorskip("home_assistant_intents")

THIN = {
    "HassBroadcast",
    "HassGetCurrentDate",
    "HassGetCurrentTime",
    "HassListAddItem",
    "HassListCompleteItem",
    "HassListRemoveItem",
    "HassNevermind",
    "HassShoppingListAddItem",
    "HassShoppingListCompleteItem",
    "HassVacuumReturnToBase",
    "HassVacuumStart",
}


@pytest.fixture(scope="module")
def english() -> Embedded:
    return smart_home()


def check(data: Embedded) -> None:
    """What holds in every language."""
    assert list(data.splits) == ["train", "validation", "test"]
    assert data.splits["train"]
    templates, texts = {}, {}
    label_of: dict[str, str] = {}
    for split, rows in data.splits.items():
        templates[split] = {row["template"] for row in rows}
        texts[split] = {" ".join(row["text"].casefold().split()) for row in rows}
        assert len(texts[split]) == len(rows), f"duplicates in {split}"
        assert max(Counter(row["label"] for row in rows).values(), default=0) <= CAPS[split]
        for row in rows:
            check_row(row)
            assert label_of.setdefault(row["text"].casefold(), row["label"]) == row["label"]
    for one, other in combinations(data.splits, 2):
        assert not templates[one] & templates[other]
        assert not texts[one] & texts[other]
    seen = {split: {row["label"] for row in rows} for split, rows in data.splits.items()}
    assert seen["validation"] | seen["test"] <= seen["train"]


def check_row(row: dict[str, Any]) -> None:
    text = row["text"]
    assert row.keys() == {"text", "label", "template", "spans"}
    assert row["template"].startswith(row["label"] + "/")
    assert text
    assert text == " ".join(text.split())
    assert not set("{}<>[]()|\\") & set(text)
    end = 0
    for slot in row["spans"]:
        assert slot.keys() == {"start", "end", "label"}
        assert end <= slot["start"] < slot["end"] <= len(text), row
        value = text[slot["start"] : slot["end"]]
        assert value == value.strip()
        assert slot["label"]
        assert ":" not in slot["label"]
        end = slot["end"]


def test_english_is_sound_and_of_the_size_we_say(english: Embedded) -> None:
    check(english)
    rows = {split: len(rows) for split, rows in english.splits.items()}
    assert 3000 <= rows["train"] <= 6000
    assert 800 <= rows["test"] <= 1400
    assert 400 <= rows["validation"] <= 800
    assert len({row["label"] for row in english.splits["train"]}) == 42


def test_thin_intents_are_only_in_training_and_named(english: Embedded) -> None:
    labels = {split: {row["label"] for row in rows} for split, rows in english.splits.items()}
    assert labels["train"] - labels["test"] == THIN
    assert labels["train"] - labels["validation"] == THIN
    (note,) = [note for note in english.notes if note.startswith("Only in training")]
    assert {name.strip(" .") for name in note.partition(":")[2].split(",")} == THIN


def test_about_a_fifth_of_an_intents_templates_are_in_test(english: Embedded) -> None:
    templates: defaultdict[str, dict[str, set[str]]] = defaultdict(lambda: {split: set() for split in english.splits})
    for split, rows in english.splits.items():
        for row in rows:
            templates[row["label"]][split].add(row["template"])
    for label, by_split in templates.items():
        total = sum(map(len, by_split.values()))
        if label not in THIN:
            # One more or less where a template's sentences all are another one's.
            assert len(by_split["test"]) == pytest.approx(max(1, 0.2 * total), abs=1.5), label
            assert len(by_split["validation"]) == pytest.approx(max(1, 0.1 * total), abs=1.5), label


def test_slots_hold_values_of_their_kind(english: Embedded) -> None:
    values: defaultdict[str, set[str]] = defaultdict(set)
    for row in english.splits["train"]:
        for slot in row["spans"]:
            values[slot["label"]].add(row["text"][slot["start"] : slot["end"]])
    assert "timer_hours" not in values  # {timer_hours:hours} fills the slot "hours"
    assert all(value.isdigit() and 1 <= int(value) <= 100 for value in values["hours"])
    assert all(int(value) % 100 == 0 for value in values["temperature"] if value.isdigit() and int(value) > 100)
    assert {"kitchen", "living room"} <= values["area"]
    assert "turn off the lights" in values["conversation_command"]
    assert len(values["area"]) >= 15


def test_names_suit_the_command(english: Embedded) -> None:
    named = {
        row["text"][slot["start"] : slot["end"]]
        for row in english.splits["train"]
        if row["label"] == "HassVacuumReturnToBase"
        for slot in row["spans"]
        if slot["label"] == "name"
    }
    assert named
    assert named <= {"robot vacuum", "Rosie", "hoover", "dust buster"}


# Without what `llm_arch.data` and `llm_arch.types` import (torch and Lightning), which takes longer than the drawing.
DRAW = """
import hashlib, json, sys, types
sys.modules["llm_arch.data"] = types.ModuleType("llm_arch.data")
sys.modules["llm_arch.data"].__path__ = [sys.argv[1]]
sys.modules["llm_arch.types"] = types.SimpleNamespace(UserError=ValueError)
from llm_arch.data.smart_home import smart_home
data = smart_home("en", sentences_per_template=3, seed=4)
print(hashlib.sha256(json.dumps([data.splits, data.notes]).encode()).hexdigest())
"""


def test_every_process_draws_the_same() -> None:
    folder = Path(module.__file__).parent
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(folder.parent.parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    digests = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    data = smart_home("en", sentences_per_template=3, seed=4)
    here = hashlib.sha256(json.dumps([data.splits, data.notes]).encode()).hexdigest()
    assert digests == [here, here]


def test_the_seed_changes_sentences_and_split() -> None:
    one, other = (smart_home(sentences_per_template=1, seed=seed).splits["test"] for seed in (0, 1))
    for what in ("text", "template"):
        assert {row[what] for row in one} != {row[what] for row in other}


@pytest.mark.parametrize("language", ["de", "fr", "zh-CN"])
def test_other_languages(language: str) -> None:
    data = smart_home(language, sentences_per_template=3)
    check(data)
    assert len({row["label"] for row in data.splits["test"]}) >= 35
    assert len(data.splits["train"]) > 1000


def test_chinese_has_its_own_rooms_and_no_spaces_between_characters() -> None:
    texts = [row["text"] for row in smart_home("zh-CN", sentences_per_template=2).splits["train"]]
    assert any("厨房" in text for text in texts)
    assert not any("kitchen" in text for text in texts)
    for text in texts:
        parts = text.split(" ")
        assert all(not (one[-1] > "\u3400" and other[0] > "\u3400") for one, other in pairwise(parts)), text


# Each draws from all templates of the language; among them the smallest, right-to-left scripts and regional variants.
@pytest.mark.parametrize("language", ["ar", "hi", "ja", "ka", "ko", "sr-Latn", "te", "zh-TW"])
def test_a_sample_of_the_bundled_languages(language: str) -> None:
    assert language in bundled.get_languages()
    check(smart_home(language, sentences_per_template=2))


def test_templates_we_cannot_fill_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {
        "language": "en",
        "intents": {
            "Odd": {"data": [{"sentences": ["<loop>", "<nowhere>", "say {unheard_of}", "{shown:slot} (one;two)"]}]},
            "Plain": {"data": [{"sentences": ["hello <who>"], "expansion_rules": {"who": "(you|\\[me\\])"}}]},
        },
        "lists": {"shown": {"values": ["[very] nice"]}},
        "expansion_rules": {"loop": "<loop> again"},
    }
    monkeypatch.setattr(bundled, "get_intents", lambda language: data)
    made = smart_home()
    check(made)
    rows = made.splits["train"]
    assert {row["text"] for row in rows} == {
        "hello you",
        *(f"{value} {order}" for value in ("nice", "very nice") for order in ("one two", "two one")),
    }
    assert {row["text"][slot["start"] : slot["end"]] for row in rows for slot in row["spans"]} == {"nice", "very nice"}
    assert {slot["label"] for row in rows for slot in row["spans"]} == {"slot"}
    assert made.notes == [
        "Only in training, having fewer than three templates: Odd, Plain.",
        "Templates left out for want of slot values or of a sentence that reads well: 3.",
    ]


def test_a_sentence_of_two_intents_is_dropped_and_one_of_two_templates_stays_on_one_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = {
        "language": "en",
        "intents": {
            "A": {"data": [{"sentences": ["Stop it", "halt", "halt [now]", "now (halt|wait)"]}]},
            "B": {"data": [{"sentences": ["stop it", "(go|run)", "[please] go", "[now] go"]}]},
            "C": {"data": [{"sentences": ["same", "(same)", "[same]", "other"]}]},
        },
    }
    monkeypatch.setattr(bundled, "get_intents", lambda language: data)
    for seed in range(10):
        made = smart_home(seed=seed)
        check(made)
        texts = [row["text"] for rows in made.splits.values() for row in rows]
        assert "stop it" not in {text.lower() for text in texts}
        assert len(texts) == len(set(texts))
        assert {"halt", "go", "same"} <= set(texts)
        assert "Sentences left out because they fit two intents: 1." in made.notes
        assert any(note.startswith("Sentences kept in one split only") for note in made.notes)
        for split, rows in made.splits.items():
            lost = [label for label in "ABC" if label not in {row["label"] for row in rows}]
            notes = [note for note in made.notes if note.startswith(f"Without rows in {split}, ")]
            assert [note.rpartition(": ")[2] for note in notes] == ([", ".join(lost) + "."] if lost else [])


def test_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no smart-home data for language 'tlh'; there is: af, ar, .*zh-TW"):
        smart_home("tlh")


def test_wrong_number_of_sentences() -> None:
    with pytest.raises(UserError, match="sentences_per_template must be at least 1, got 0"):
        smart_home(sentences_per_template=0)


@pytest.mark.parametrize("package", ["hassil", "home_assistant_intents"])
def test_a_missing_package_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'llm_arch\[demo\]'"):
        smart_home()
