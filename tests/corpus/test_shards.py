from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llm_arch.corpus.shards import Store, integer_type, is_store
from llm_arch.corpus.writer import Writer, clear
from llm_arch.data.tokenizers import fingerprint
from llm_arch.types import UserError

PLAN = {"inputs": ["a.txt"], "column": "text"}


def make(
    directory: Path, documents: list[list[int]], dtype: str = "uint16", each: int = 3, tokenizer: str = "none"
) -> Store:
    """A store with a shard for every few documents."""
    writer = Writer(directory, PLAN, "llm-arch prepare --input a.txt", dtype)
    (directory / "tokenizer").mkdir(exist_ok=True)
    (directory / "tokenizer" / "tokenizer.json").write_text("{}")
    for first in range(0, len(documents), each):
        some = documents[first : first + each]
        for one in some:
            rows = np.array([[len(one), 2 * len(one), sum(one)]], np.int64)
            writer.add(np.array(one, dtype), rows)
        writer.end_shard({"first": first})
    return writer.finish({"tokenizer": tokenizer, "vocabulary": 100, "skipped": {}, "sources": ["a.txt"]})


DOCUMENTS = st.lists(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9), min_size=1, max_size=10)
BOUND = st.integers(-12, 12)


@settings(max_examples=60, deadline=None)
@given(
    documents=DOCUMENTS,
    each=st.integers(1, 5),
    dtype=st.sampled_from(["uint16", "uint32"]),
    slices=st.lists(st.tuples(st.integers(0, 9), BOUND, st.none() | BOUND), max_size=20),
)
def test_reading_is_slicing(
    documents: list[list[int]],
    each: int,
    dtype: str,
    slices: list[tuple[int, int, int | None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)  # waits for the disk
        store = make(tmp_path_factory.mktemp("store"), documents, dtype, each)
    assert len(store) == len(documents)
    assert store.lengths.tolist() == [len(document) for document in documents]
    assert store.text_bytes.tolist() == [2 * len(document) for document in documents]
    assert store.keys.tolist() == [sum(document) for document in documents]
    assert store.lengths.dtype == store.text_bytes.dtype == store.keys.dtype == np.int64
    assert [store.read(i).tolist() for i in range(len(store))] == documents
    for number, start, stop in slices:
        number %= len(documents)
        assert store.read(number, start, stop).tolist() == documents[number][start:stop]
    assert store.read(0).dtype == np.dtype(dtype)


def test_manifest(tmp_path: Path) -> None:
    store = make(tmp_path / "store", [[1, 2], [3], [4, 5, 6], [7]])
    facts = store.manifest
    assert {name: facts[name] for name in ("version", "dtype", "documents", "tokens", "bytes", "plan")} == {
        "version": 1,
        "dtype": "uint16",
        "documents": 4,
        "tokens": 7,
        "bytes": 14,
        "plan": PLAN,
    }
    assert [(shard["file"], shard["documents"], shard["tokens"]) for shard in facts["shards"]] == [
        ("00000.tokens", 3, 6),
        ("00001.tokens", 1, 1),
    ]
    assert store.tokenizer == tmp_path / "store" / "tokenizer"
    assert is_store(tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted(
        ["00000.tokens", "00001.tokens", "manifest.json", "tokenizer"]
        + [f"{name}.npy" for name in ("keys", "lengths", "starts", "text_bytes")]
    )
    raw = (tmp_path / "store" / "00000.tokens").read_bytes()
    assert np.frombuffer(raw, "<u2").tolist() == [1, 2, 3, 4, 5, 6]


def test_a_store_is_read_only_and_bounds_are_checked(tmp_path: Path) -> None:
    store = make(tmp_path / "store", [[1, 2], [3]])
    with pytest.raises(ValueError, match="read-only"):
        store.read(0)[0] = 5
    for number in (-1, 2):
        with pytest.raises(IndexError, match=f"document {number} of a store of 2"):
            store.read(number)


def test_two_processes_read_a_hundred_documents(tmp_path: Path) -> None:
    documents = [[(i * j) % 65536 for j in range(1, i % 13 + 2)] for i in range(100)]
    store = make(tmp_path / "store", documents, each=7)
    assert store.read(5).tolist() == documents[5]
    sent = pickle.dumps(store)
    assert len(sent) < 10_000  # what is mapped is mapped anew

    def read_all(order: list[int]) -> bool:
        received = pickle.loads(sent)
        return all(received.read(i).tolist() == documents[i] for _ in range(3) for i in order)

    children = []
    for order in (list(range(100)), list(range(99, -1, -1))):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forks beside threads, which the child has no use of
            child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if read_all(order) else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_integer_types() -> None:
    assert [integer_type(n) for n in (1, 2**16, 2**16 + 1, 2**32)] == ["uint16", "uint16", "uint32", "uint32"]
    with pytest.raises(UserError, match=r"the tokenizer has 4,294,967,297 ids; .* at most 32 bits"):
        integer_type(2**32 + 1)


def tokenizer(*words: str) -> Any:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=words[0])


def test_another_tokenizer(tmp_path: Path) -> None:
    ours, theirs = tokenizer("<unk>", "a", "b"), tokenizer("<unk>", "b", "a")
    make(tmp_path / "store", [[1]], tokenizer=fingerprint(ours))
    assert len(Store.open(tmp_path / "store", tokenizer=ours)) == 1
    with pytest.raises(UserError, match=r"store was made with another tokenizer .* its own, which lies in"):
        Store.open(tmp_path / "store", tokenizer=theirs)


@pytest.mark.parametrize("name", ["00001.tokens", "lengths.npy", "keys.npy", "tokenizer/tokenizer.json"])
def test_a_damaged_file_is_named_by_its_checksum(name: str, tmp_path: Path) -> None:
    make(tmp_path / "store", [[1, 2], [3], [4], [5]])
    path = tmp_path / "store" / name
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    Store.open(tmp_path / "store")
    with pytest.raises(UserError, match=rf"store/{name} is damaged: its checksum differs"):
        Store.open(tmp_path / "store", check=True)


def test_a_cut_or_missing_file_is_found_without_reading(tmp_path: Path) -> None:
    make(tmp_path / "store", [[1, 2], [3], [4], [5]])
    shard = tmp_path / "store" / "00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00000.tokens is damaged: it has 7 bytes instead of 8; copy it again"):
        Store.open(tmp_path / "store")
    shard.unlink()
    with pytest.raises(UserError, match=r"00000.tokens is damaged: it is missing"):
        Store.open(tmp_path / "store")
    shard.write_bytes(bytes(8))
    for name, raw in (("starts.npy", b""), ("lengths.npy", b"no array"), ("keys.npy", None)):
        path = tmp_path / "store" / name
        whole = path.read_bytes()
        path.unlink()
        if raw is not None:
            path.write_bytes(raw)
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            Store.open(tmp_path / "store")
        path.write_bytes(whole)


def test_arrays_that_are_pickles_are_not_read(tmp_path: Path) -> None:
    make(tmp_path / "store", [[1]])
    np.save(tmp_path / "store" / "keys.npy", np.array([{"run": "me"}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"keys.npy is damaged: it is not an array"):
        Store.open(tmp_path / "store")


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("none", "empty"):
        with pytest.raises(UserError, match=rf"{name} is no corpus store: it has no manifest.json; make one"):
            Store.open(tmp_path / name)
    with pytest.raises(UserError, match="file is a file; a corpus store is a directory"):
        Store.open(tmp_path / "file")
    assert not is_store(tmp_path / "empty")
    for text, said in (
        ("{", "manifest.json is damaged: it is not valid JSON"),
        ("[]", "is a store of version None"),
        ('{"version": 2}', "is a store of version 2, and this release reads version 1"),
    ):
        (tmp_path / "empty" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=said):
            Store.open(tmp_path / "empty")


def test_a_half_written_store_says_how_to_go_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store", PLAN, "llm-arch prepare --input 'a b.txt'", "uint16")
    writer.add(np.array([1, 2]), np.array([[2, 4, 9]]))
    writer.end_shard({})
    with pytest.raises(UserError, match=r"store that is not finished; go on with llm-arch prepare --input 'a b.txt'$"):
        Store.open(tmp_path / "store")
    assert not is_store(tmp_path / "store")


def test_writing_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    home = tmp_path / "store"
    writer = Writer(home, PLAN, "again", "uint16")
    assert writer.state is None
    writer.add(np.array([1, 2]), np.array([[2, 4, 9]]))
    writer.end_shard({"at": 1})
    writer.end_shard({"at": 2})  # nothing but faults were read
    writer.add(np.array([3]), np.array([[1, 4, 9]]))
    writer.end_shard({"at": 3})
    journal = home / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-5])  # killed while the last line was being written
    (home / "00002.tokens.partial").write_bytes(b"x")
    again = Writer(home, PLAN, "again", "uint16")
    assert again.state == {"at": 2}
    assert [shard["tokens"] for shard in again.shards] == [2]
    assert sorted(path.name for path in home.iterdir()) == ["00000.documents", "00000.tokens", "journal.jsonl"]
    assert again.index(0).tolist() == [[2, 4, 9]]
    again.add(np.array([3]), np.array([[1, 4, 9]]))
    again.end_shard({"at": 3})
    assert journal.read_bytes() == whole
    for name in ("00000.tokens", "00001.documents"):
        kept = (home / name).read_bytes()
        (home / name).write_bytes(b"")
        with pytest.raises(UserError, match=rf"{name} is missing or damaged; begin anew with --overwrite"):
            Writer(home, PLAN, "again", "uint16")
        (home / name).write_bytes(kept)
    for text, said in (
        ("", "journal.jsonl is damaged; begin anew"),
        ("{}\n", "journal.jsonl is damaged; begin anew"),
        ('{"version": 0, "plan": 1, "command": 2}\n', "was begun by another release; begin anew"),
    ):
        journal.write_text(text)
        with pytest.raises(UserError, match=said):
            Writer(home, PLAN, "again", "uint16")


def test_another_plan(tmp_path: Path) -> None:
    Writer(tmp_path / "store", PLAN, "llm-arch prepare", "uint16")
    for plan, said in (
        ({**PLAN, "column": "body"}, "column text instead of body"),
        ({**PLAN, "inputs": ["b.txt", "c.txt"]}, r"inputs a.txt instead of b.txt c.txt"),
        ({**PLAN, "files": "0"}, r"other input files \(some were changed, added or removed\)"),
    ):
        with pytest.raises(UserError, match=f"half-written store with {said}; finish it with llm-arch prepare"):
            Writer(tmp_path / "store", plan, "llm-arch prepare", "uint16")


def test_clear_removes_a_store_alone(tmp_path: Path) -> None:
    make(tmp_path / "store", [[1]])
    (tmp_path / "store" / "mine.txt").write_text("x")
    clear(tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["mine.txt"]


def test_the_journal_is_json(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store", PLAN, "again", "uint32")
    writer.add(np.array([1, 70_000]), np.array([[2, 4, 9]]))
    writer.end_shard({"at": 1})
    header, shard = map(json.loads, (tmp_path / "store" / "journal.jsonl").read_text().splitlines())
    assert header == {"version": 1, "plan": PLAN, "command": "again"}
    assert shard.pop("sha256")
    assert shard == {"state": {"at": 1}, "file": "00000.tokens", "documents": 1, "tokens": 2, "bytes": 4}
