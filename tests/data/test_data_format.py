"""Reading rows into stored tokens: what is kept, counted and complained of, and when it is made anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llm_arch.data.format as module
import llm_arch.data.reading as reading
from llm_arch.data import TextClassificationData
from llm_arch.data.sources import Row, Source
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import UserError

Make = Callable[..., TextClassificationData]
Write = Callable[..., str]
HINT = " (or leave such rows out with --data.on_bad_row skip)"


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def stores(data: TextClassificationData) -> list[str]:
    """The names under which rows are kept."""
    return sorted(path.name for path in (data.cache / "data").iterdir() if path.is_dir())


# Tokens

TEXTS = st.lists(st.sampled_from(["w0", "w1", "w50", "w95", "unheard"]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), max_length=st.integers(4, 12))
def test_encode_texts(make_data: Make, id_of: dict[str, int], texts: list[str], max_length: int) -> None:
    data = make_data(max_length=max_length)
    columns, counts = data.encode([{"text": text} for text in texts])
    words = [[id_of.get(word, id_of["[UNK]"]) for word in text.split()] for text in texts]
    assert columns["input_ids"] == [[id_of["[CLS]"], *ids[: max_length - 2], id_of["[SEP]"]] for ids in words]
    assert columns["token_type_ids"] == [None] * len(texts)
    assert counts == {"truncated": sum(len(ids) + 2 > max_length for ids in words)}


def test_encode_pairs(make_data: Make, id_of: dict[str, int]) -> None:
    pairs = [("w0 w1", "w2"), ("w0", "w1 w2 w3 w4 w5 w6")]
    data = make_data(max_length=8, text_pair_column="other")
    columns, counts = data.encode([{"text": a, "other": b} for a, b in pairs])
    cls, sep = id_of["[CLS]"], id_of["[SEP]"]
    w = [id_of[f"w{i}"] for i in range(5)]
    assert columns["input_ids"] == [[cls, w[0], w[1], sep, w[2], sep], [cls, w[0], sep, *w[1:5], sep]]
    assert columns["token_type_ids"] == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert counts == {"truncated": 1}


def test_encode_pairs_without_token_types(make_data: Make, make_words: Callable[..., str], tmp_path: Path) -> None:
    names = ["input_ids", "attention_mask"]
    data = make_data(tokenizer=make_words(tmp_path / "plain", model_input_names=names), text_pair_column="other")
    assert data.encode([{"text": "w0", "other": "w1"}])[0]["token_type_ids"] == [None]


def test_a_real_tokenizer_agrees_with_transformers(make_data: Make, tokenizer: str) -> None:
    data = make_data(tokenizer=tokenizer, max_length=8)
    texts = ["Turn on the light!", "extraordinarily long sentences are cut at the limit, antidisestablishmentarianism"]
    columns, counts = data.encode([{"text": text} for text in texts])
    pieces = [data.tokenizer.tokenize(text) for text in texts]
    assert columns["input_ids"] == [
        data.tokenizer.convert_tokens_to_ids(["[CLS]", *piece[:6], "[SEP]"]) for piece in pieces
    ]
    assert [len(piece) + 2 > 8 for piece in pieces] == [False, True]
    assert counts == {"truncated": 1}


def test_no_tokenizer() -> None:
    message = "data.tokenizer is not set, and the backbone names none: name a tokenizer directory"
    with pytest.raises(UserError, match=exactly(message)):
        TextClassificationData().tokenizer  # noqa: B018


# Facts


def test_stored_rows_and_facts(make_data: Make, write_rows: Write, id_of: dict[str, int]) -> None:
    rows = [
        {"text": "w1 w2", "label": "b"},
        {"text": "w1 what w3 w4 w5 w6", "label": "a"},
        {"text": "w1 w2", "label": "b"},
        {"text": "huh", "label": "b"},
    ]
    stored, facts = make_data(max_length=6).load_source(write_rows(rows))
    cls, sep, unk = (id_of[name] for name in ("[CLS]", "[SEP]", "[UNK]"))
    w = {i: id_of[f"w{i}"] for i in range(10)}
    both = [cls, w[1], w[2], sep]
    assert stored["input_ids"][:] == [both, [cls, w[1], unk, w[3], w[4], sep], both, [cls, unk, sep]]
    assert stored["text"][:] == [row["text"] for row in rows]
    assert stored["labels"][:] == [["b"], ["a"], ["b"], ["b"]]
    assert stored["line"][:] == [1, 2, 3, 4]
    keys = stored["key"][:]
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3
    assert len(facts.pop("fingerprint")) == 64
    assert facts == {
        "rows": 4,
        "tokens": 4 + 6 + 4 + 3,
        "truncated": 1,
        "unknown": 2,
        "words": 2 + 6 + 2 + 1,
        "labels": {"b": [3, 1], "a": [1, 2]},
        "bad": [],
        "bad_rows": 0,
        "notes": [],
    }


def test_the_second_text_makes_rows_distinct(make_data: Make, write_rows: Write) -> None:
    pairs = [("w1", "w2"), ("w1", "w3"), ("w2", "w1"), ("w1", "w2")]
    path = write_rows([{"text": a, "other": b, "label": "x"} for a, b in pairs])
    stored, facts = make_data(text_pair_column="other").load_source(path)
    keys = stored["key"][:]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3
    assert stored["text_pair"][:] == ["w2", "w3", "w1", "w2"]
    assert facts["words"] == 8


def test_rows_are_read_and_stored_chunk_by_chunk(
    make_data: Make, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the source is, only a chunk of it is held."""
    total, read, gaps, sizes = 3500, 0, [], []

    def rows(self: Source) -> Iterator[Row]:
        nonlocal read
        for i in range(total):
            read += 1
            yield Row(i + 1, {"text": f"w{i % 96}", "label": "a"})

    def stored(root: Path, key: str, schema: Any, make: Any) -> Any:
        facts: dict[str, Any] = {}
        for columns in make(facts):
            sizes.append(len(columns["input_ids"]))
            gaps.append(read - sum(sizes))
        return None, facts

    monkeypatch.setattr(Source, "rows", rows)
    monkeypatch.setattr(module, "stored", stored)
    _, facts = make_data().load_source(write_rows([{"text": "a", "label": "b"}]))
    assert facts["rows"] == read == sum(sizes) == total
    assert max(sizes) <= 1000
    assert max(gaps) <= 1


# Rows that can't be used

BAD = [
    ({"text": "w1", "label": "a"}, None),
    ({"text": "  ", "label": "a"}, "'text' is empty; fix the row"),
    ({"text": None, "label": "a"}, "has no 'text'"),
    ({"text": 5, "label": "a"}, "'text' holds int instead of text; fix the row"),
    ({"text": "w1", "label": None}, "has no 'label'"),
    ({"text": "w1", "label": " "}, "'label' is empty; fix the row"),
    ({"text": "w1", "label": 1.5}, "'label' holds 1.5, which is no label; fix the row"),
    ({"text": "w1", "label": {"a": 1}}, "'label' holds {'a': 1}, which is no label; fix the row"),
    ({"text": "w1", "label": ["a", None]}, "'label' holds None, which is no label; fix the row"),
    ({"text": "w1", "label": ["a", ""]}, "'label' is empty; fix the row"),
    ({"text": "w1"}, "has no 'label'"),
]
FAULTS = [(row, fault) for row, fault in BAD if fault]


@pytest.mark.parametrize(("row", "fault"), FAULTS)
def test_a_bad_row_stops(make_data: Make, write_rows: Write, row: dict[str, Any], fault: str) -> None:
    path = write_rows([BAD[0][0], BAD[0][0], row, BAD[0][0]])
    data = make_data()
    with pytest.raises(UserError, match=exactly(f"{path}, line 3: {fault}{HINT}")):
        data.load_source(path)
    assert stores(data) == []


def test_bad_rows_are_skipped_and_counted(make_data: Make, write_rows: Write) -> None:
    stored, facts = make_data(on_bad_row="skip").load_source(write_rows([row for row, _ in BAD]))
    assert stored["line"][:] == [1]
    assert facts["rows"] == 1
    assert facts["bad_rows"] == len(FAULTS)
    assert facts["bad"] == [[line, fault] for line, (_, fault) in enumerate(BAD, start=1) if fault]


def test_unreadable_lines_are_bad_rows_too(make_data: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\n"w1" w2,a\nw1,a\nw1\n\xff,a\n')
    _, facts = make_data(on_bad_row="skip").load_source(str(path))
    assert [line for line, _ in facts["bad"]] == [2, 4, 5]
    with pytest.raises(UserError, match=rf"a\.csv, line 2: is not valid csv \(.*\){re.escape(HINT)}$"):
        make_data().load_source(str(path))


def test_what_was_kept_without_bad_rows_still_stops_where_they_must_not_be(make_data: Make, write_rows: Write) -> None:
    path = write_rows([BAD[0][0], {"text": "", "label": "a"}])
    skipping, strict = make_data(on_bad_row="skip"), make_data()
    skipping.load_source(path)
    kept = stores(skipping)
    assert len(kept) == 1
    for _ in range(2):
        with pytest.raises(UserError, match=exactly(f"{path}, line 2: 'text' is empty; fix the row{HINT}")):
            strict.load_source(path)
    assert stores(strict) == kept
    assert make_data(on_bad_row="skip").load_source(path)[1]["bad_rows"] == 1


def test_the_list_of_bad_rows_is_bounded(make_data: Make, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_KEPT_BAD_ROWS", 2)
    path = write_rows([BAD[0][0], *({"text": "", "label": "a"} for _ in range(5))])
    facts = make_data(on_bad_row="skip").load_source(path)[1]
    assert (facts["bad_rows"], [line for line, _ in facts["bad"]]) == (5, [2, 3])


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_wrong_column(make_data: Make, write_rows: Write, on_bad_row: str) -> None:
    path = write_rows([{"sentence": "w1", "label": "a", "id": "7"}])
    message = (
        f"{path} has no column 'text'; it has: sentence, label, id. "
        "Name yours with --data.text_column, --data.label_column and the like"
    )
    with pytest.raises(UserError, match=exactly(message)):
        make_data(on_bad_row=on_bad_row).load_source(path)
    assert make_data(text_column="sentence").load_source(path)[0]["text"][:] == ["w1"]


def test_no_rows(make_data: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n")
    for _ in range(2):  # also when the emptiness is kept
        with pytest.raises(UserError, match=exactly(f"{path} has no rows to use; add some, or name another file")):
            make_data().load_source(str(path))
    path.write_text("text,label\n,a\n,b\n")
    message = f"{path} has no rows to use (2 bad rows were skipped); add some, or name another file"
    with pytest.raises(UserError, match=exactly(message)):
        make_data(on_bad_row="skip").load_source(str(path))


def test_prediction_needs_no_label(make_data: Make, write_rows: Write) -> None:
    path = write_rows([{"text": "w1"}, {"text": "w2", "label": {"odd": 1}}])
    stored, facts = make_data().load_source(path, labelled=False)
    assert stored["labels"][:] == [[], []]
    assert facts["rows"] == 2


def test_one_file_with_and_without_labels(make_data: Make, write_rows: Write) -> None:
    data, path = make_data(), write_rows([{"text": "w1", "label": "a"}])
    assert data.load_source(path, labelled=False)[0]["labels"][:] == [[]]
    assert data.load_source(path)[0]["labels"][:] == [["a"]]
    assert data.load_source(path, labelled=False)[0]["labels"][:] == [[]]


# What makes rows be read anew


def test_nothing_is_read_twice(make_data: Make, write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows([{"text": "w1", "label": "a"}])
    first = make_data()
    rows, facts = first.load_source(path)
    assert first.load_source(path)[0] is rows
    monkeypatch.setattr(Source, "rows", lambda self: pytest.fail("read again"))
    again, kept = make_data(batch_size=3, layout="padded", on_bad_row="skip").load_source(path)
    assert (again[:], kept) == (rows[:], facts)
    assert len(stores(first)) == 1


def test_everything_that_changes_the_rows_makes_them_anew(
    make_data: Make, make_words: Callable[..., str], write_rows: Write, id_of: dict[str, int], tmp_path: Path
) -> None:
    rows = [{"text": "w1 w2", "other": "w3", "label": "a", "kind": "b"}]
    path, changed = write_rows(rows), write_rows([*rows, *rows], "changed.jsonl")
    fewer = make_words(tmp_path / "fewer", tuple(id_of)[:90])
    found = []
    for file, options in (
        (path, {}),
        (changed, {}),
        (path, {"max_length": 127}),
        (path, {"text_column": "other"}),
        (path, {"text_pair_column": "other"}),
        (path, {"label_column": "kind"}),
        (path, {"label_delimiter": "|"}),
        (path, {"tokenizer": fewer}),
    ):
        data = make_data(**options)
        data.load_source(file)
        found.append(len(stores(data)))
    make_data().load_source(path, labelled=False)
    assert [*found, len(stores(data))] == list(range(1, 10))
    copy = write_rows(rows, "copy.jsonl")
    make_data().load_source(copy)  # the same content under another name is the same
    assert len(stores(data)) == 9


def test_a_format_of_the_users_own_is_read_anew_when_its_code_changes(
    words: str, write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(TextClassificationData):
        pass

    path = write_rows([{"text": "w1", "label": "a"}])
    for source in ("one", "one", "two"):
        monkeypatch.setattr(module.inspect, "getsource", lambda kind, source=source: source)
        data = Own(tokenizer=words, cache_dir=str(tmp_path / "cache"))
        data.load_source(path)
    assert len(stores(data)) == 2


PROGRAM = """
import gc, sys
gc.disable()  # importing takes less time then
from llm_arch.data import TextClassificationData
path, tokenizer, cache = sys.argv[1:]
data = TextClassificationData(path, tokenizer=tokenizer, cache_dir=cache, text_pair_column="other")
data.load_source(path)
"""


def test_every_process_keeps_the_same_under_the_same_name(
    make_data: Make, write_rows: Write, words: str, tmp_path: Path
) -> None:
    path = write_rows([{"text": f"w{i} é", "other": "w2 w3", "label": f"l{i % 3}"} for i in range(20)])
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # not the one of this process
    caches = [tmp_path / "here", tmp_path / "there"]
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, path, words, str(caches[1])]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, timeout=120)
    make_data(text_pair_column="other", cache_dir=str(caches[0])).load_source(path)
    here, there = (
        [(p.parent.name, p.name, p.read_bytes()) for p in sorted((cache / "data").glob("*/*"))] for cache in caches
    )
    assert [name for _, name, _ in here] == ["facts.json", "rows.arrow"]
    assert here == there


def test_a_row_without_tokens_is_a_bad_row(
    write_rows: Callable[..., str], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(
        [{"text": "on it", "label": "a"}, {"text": "\u200b", "label": "b"}, {"text": "off", "label": "b"}]
    )
    bare = load_tokenizer(tokenizer)
    monkeypatch.setattr(bare, "build_inputs_with_special_tokens", lambda a, b=None: a, raising=False)
    bare.backend_tokenizer.post_processor = None
    strict = TextClassificationData(path, tokenizer=tokenizer)
    strict.__dict__["tokenizer"] = bare
    with pytest.raises(UserError, match="line 2: gives no tokens"):
        strict.load_source(path)
    lenient = TextClassificationData(path, tokenizer=tokenizer, on_bad_row="skip")
    lenient.__dict__["tokenizer"] = bare
    rows, facts = lenient.load_source(path)
    assert facts["bad"] == [[2, "gives no tokens with this tokenizer; fix the row"]]
    assert rows["text"][:] == ["on it", "off"]
