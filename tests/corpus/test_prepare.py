from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_arch.corpus import prepare as prepare_module
from llm_arch.corpus import reading
from llm_arch.corpus.prepare import prepare
from llm_arch.corpus.shards import Store
from llm_arch.data.tokenizers import fingerprint
from llm_arch.types import UserError

LINES = [f"line {i} of {i * i % 97} words, {'more ' * (i % 11)}é" for i in range(400)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<end>", "[MASK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES[:50], trainer)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", mask_token="[MASK]")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lines in two files of several blocks each, with a few bad ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    Path("a.txt").write_text("\n".join(LINES[:250]) + "\n")
    rows = [json.dumps({"text": line}) for line in LINES[250:]]
    Path("b.jsonl").write_text("\n".join([*rows[:50], "{bad", '{"text": null}', *rows[50:]]) + "\n")
    Path("c.txt").write_bytes(b"")
    return tmp_path


INPUTS = ["a.txt", "b.jsonl", "c.txt"]
PREPARE: dict[str, Any] = {"workers": 0, "shard_tokens": 1500, "progress": False}


def content(directory: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def workers() -> list[psutil.Process]:
    """The processes that encode; other tests may have left some of theirs behind."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "llm_arch.corpus.worker" in child.cmdline():
                found.append(child)
    return found


def test_a_store_holds_what_the_tokenizer_says(corpus: Path, tokenizer: Any) -> None:
    store = prepare(INPUTS, tokenizer, "store", **PREPARE)
    expected = tokenizer(LINES, add_special_tokens=False)["input_ids"]
    assert [store.read(i).tolist() for i in range(len(store))] == expected
    assert store.text_bytes.tolist() == [len(line.encode()) for line in LINES]
    assert len(set(store.keys.tolist())) == len(set(LINES))
    facts = store.manifest
    assert len(facts["shards"]) > 3
    assert (facts["documents"], facts["tokens"]) == (400, sum(map(len, expected)))
    assert facts["bytes"] == sum(len(line.encode()) for line in LINES)
    assert facts["skipped"] == {"not JSON": 1, "no text": 1, "empty": 1}
    assert facts["skipped_first"] == [["b.jsonl", 51, "not JSON"], ["b.jsonl", 52, "no text"], ["c.txt", 0, "empty"]]
    assert (facts["duplicates"], facts["sources"], facts["dtype"]) == (0, INPUTS, "uint16")
    assert (facts["tokenizer"], facts["vocabulary"]) == (fingerprint(tokenizer), 300)
    Store.open("store", tokenizer=AutoTokenizer.from_pretrained(store.tokenizer), check=True)


def test_the_number_of_workers_changes_nothing(corpus: Path, tokenizer: Any) -> None:
    prepare(INPUTS, tokenizer, "one", **PREPARE)
    prepare(INPUTS, tokenizer, "two", **PREPARE | {"workers": 3})
    assert content(corpus / "one") == content(corpus / "two")
    assert not workers()


def test_a_finished_store_is_opened(corpus: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare(INPUTS, tokenizer, "store", **PREPARE)
    monkeypatch.setattr(prepare_module, "Writer", None)
    assert prepare(INPUTS, tokenizer, "store", **PREPARE).manifest == made.manifest
    os.utime("b.jsonl", ns=(1, 1))
    with pytest.raises(UserError, match=r"^store holds a store with other input files .* replace it with --overwrite"):
        prepare(INPUTS, tokenizer, "store", **PREPARE)
    with pytest.raises(UserError, match=r"^store holds a store with inputs a.txt b.jsonl c.txt instead of a.txt;"):
        prepare(["a.txt"], tokenizer, "store", **PREPARE)


def test_overwriting(corpus: Path, tokenizer: Any) -> None:
    prepare(INPUTS, tokenizer, "store", **PREPARE)
    prepare(["a.txt"], tokenizer, "store", **PREPARE, overwrite=True)
    prepare(["a.txt"], tokenizer, "fresh", **PREPARE)
    assert content(corpus / "store") == content(corpus / "fresh")


def test_a_directory_of_something_else_is_left_alone(corpus: Path, tokenizer: Any) -> None:
    Path("store").mkdir()
    Path("store/thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"store is not empty and no store: it holds thesis.tex; name a directory"):
            prepare(INPUTS, tokenizer, "store", **PREPARE, overwrite=overwrite)
    for place in ("a.txt", "a.txt/inside"):
        with pytest.raises(UserError, match=r"(is a file|lies in a file); name a directory"):
            prepare(["b.jsonl"], tokenizer, place, **PREPARE)
    assert sorted(os.listdir("store")) == ["thesis.tex"]


def test_nothing_is_left_of_a_store_without_documents(corpus: Path, tokenizer: Any) -> None:
    Path("binary.txt").write_bytes(b"\0" * 100)
    with pytest.raises(
        UserError,
        match=r"^c.txt, binary.txt: no documents in it; skipped: 1 empty, 1 binary \(the first: c.txt\)$",
    ):
        prepare(["c.txt", "binary.txt"], tokenizer, "store", **PREPARE)
    assert not Path("store").exists()
    Path("rows.jsonl").write_text('{"body": "x"}\n')
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^rows.jsonl has no column 'text'; it has: body"):
            prepare(["rows.jsonl"], tokenizer, "store", **PREPARE | {"workers": workers})


def test_large_vocabularies_take_four_bytes(corpus: Path) -> None:
    words = {f"w{i}": i for i in range(65_537)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0")
    Path("words.txt").write_text("w65536 w1 nothing\n")
    for workers in (0, 1):
        store = prepare(["words.txt"], tokenizer, f"store{workers}", **PREPARE | {"workers": workers})
        assert store.manifest["dtype"] == "uint32"
        assert store.read(0).tolist() == [65_536, 1, 0]


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_duplicates_go_wherever_they_are(kind: Any, corpus: Path, tokenizer: Any) -> None:
    Path("again.txt").write_text("\n".join([LINES[7], "new", LINES[300], "new", LINES[7].upper()]))
    store = prepare([*INPUTS, "again.txt"], tokenizer, "store", **PREPARE, deduplicate=kind)
    kept = [tokenizer.decode(store.read(i)) for i in range(len(store))]
    if kind == "exact":
        assert kept == [*LINES, "new", LINES[7].upper()]
        assert store.manifest["duplicates"] == 3
    else:
        assert LINES[7].upper() not in kept
        assert kept.count("new") == 1
        assert store.manifest["duplicates"] == 405 - len(kept)
    assert len(set(store.keys.tolist())) == len(store)


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


def abandon(writer: Any) -> None:
    """What a kill does to files: what is buffered is lost, and nothing tidied up."""
    for file in writer._files or ():
        file.raw.close()
        with suppress(ValueError):
            file.close()


@pytest.mark.parametrize("kind", ["none", "near"])
def test_a_stop_anywhere_changes_nothing(
    kind: Any, corpus: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every write to the disk in turn, and gone on with."""
    options = PREPARE | {"deduplicate": kind}
    Path("again.txt").write_text("\n".join(LINES[100:120]))
    inputs = [*INPUTS, "again.txt"]
    prepare(inputs, tokenizer, "whole", **options)
    expected = content(corpus / "whole")
    left = 0

    def stop_at_last() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def stopping(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not after:
                stop_at_last()
            result = function(*arguments, **options)
            if after:
                stop_at_last()
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stopping(lambda handle: None, after=False))
        patch.setattr(Path, "rename", stopping(Path.rename, after=True))
        patch.setattr(Path, "replace", stopping(Path.replace, after=True))
        patch.setattr(Path, "unlink", stopping(Path.unlink, after=True))
        patch.setattr("llm_arch.corpus.writer.Writer.stop", abandon)
        stops = 0
        for allowed in (1, 2, 3, 5, 8, 4, 7, 6, 9, 3, 10, 5, 12, 30, 1000):
            left = allowed
            try:
                prepare(inputs, tokenizer, "store", **options)
                break
            except Killed:
                stops += 1
                if not (Path("store") / "manifest.json").is_file():
                    with pytest.raises(UserError, match="not finished|no corpus store"):
                        Store.open("store")
        assert stops >= 10
    found = content(corpus / "store")
    assert found == expected


def test_a_real_process_killed_at_random(corpus: Path, tokenizer: Any) -> None:
    started = time.perf_counter()
    prepare(INPUTS, tokenizer, "whole", **PREPARE | {"workers": 2})
    whole = time.perf_counter() - started
    generator = random.Random(0)
    kills = 0
    for attempt in range(40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child starts processes
            child = os.fork()
        if not child:
            try:
                prepare(INPUTS, tokenizer, "store", **PREPARE | {"workers": 2})
            finally:
                os._exit(0 if Path("store/manifest.json").exists() else 1)
        if kills < 4:
            time.sleep(generator.random() * whole)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0 and kills >= 4:
            break
        if status == 0:  # done before the kill: from the start again
            assert content(corpus / "store") == content(corpus / "whole"), attempt
            shutil.rmtree("store")
            continue
        assert os.WIFSIGNALED(status)
        kills += 1
    assert kills == 4
    assert content(corpus / "store") == content(corpus / "whole")


def test_a_kill_just_before_the_end_leaves_nothing(corpus: Path, tokenizer: Any) -> None:
    prepare(INPUTS, tokenizer, "store", **PREPARE)
    before = content(corpus / "store")
    (corpus / "store" / "00000.documents").write_bytes(bytes(24))  # what the end of the work removes last
    prepare(INPUTS, tokenizer, "store", **PREPARE)
    assert content(corpus / "store") == before


def test_a_full_disk_stops_cleanly(corpus: Path, tokenizer: Any) -> None:
    Path("long.txt").write_text("\n".join(LINES * 10))
    options = PREPARE | {"shard_tokens": 10**9}
    prepare(["long.txt"], tokenizer, "whole", **options)
    expected = content(corpus / "whole")
    # The tokenizer and the journal fit, the one large shard does not.
    limit = 1 + max(len(raw) for name, raw in expected.items() if "tokenizer" in name)
    assert len(expected["00000.tokens"]) > limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            UserError,
            match=r"^store: the disk is full \(File too large\); finished shards are safe: make room, then go on "
            r"with llm-arch prepare --input long.txt --tokenizer store/tokenizer --output store --shard-tokens 10+$",
        ):
            prepare(["long.txt"], tokenizer, "store", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir("store")) == [".lock", "journal.jsonl", "tokenizer"]
    with pytest.raises(UserError, match="not finished; go on with llm-arch prepare --input long.txt"):
        Store.open("store")
    prepare(["long.txt"], tokenizer, "store", **options)
    assert content(corpus / "store") == expected


def test_a_disk_too_full_for_the_tokenizer(corpus: Path, tokenizer: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(UserError, match=r"^store: the disk is full \(File too large\)"):
            prepare(INPUTS, tokenizer, "store", **PREPARE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(prepare(INPUTS, tokenizer, "store", **PREPARE)) == 400


def test_who_comes_second_waits(corpus: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    stores: list[Store] = []
    second = threading.Thread(target=lambda: stores.append(prepare(INPUTS, tokenizer, "store", workers=0)))

    def begin(read: int, tokens: int) -> None:
        if not second.ident:
            second.start()
            while "waiting" not in capfd.readouterr().err:
                time.sleep(0.01)

    stores.append(prepare(INPUTS, tokenizer, "store", workers=0, watch=begin))
    second.join()
    assert stores[0].manifest == stores[1].manifest


def test_a_full_disk_keeps_finished_shards(corpus: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(INPUTS, tokenizer, "whole", **PREPARE)
    fsync, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk is full \(No space left on device\)"):
            prepare(INPUTS, tokenizer, "store", **PREPARE)
    assert [name for name in sorted(os.listdir("store")) if name.endswith(".tokens")] == [
        "00000.tokens",
        "00001.tokens",
    ]
    assert not [name for name in os.listdir("store") if name.endswith(".partial")]
    prepare(INPUTS, tokenizer, "store", **PREPARE)
    assert content(corpus / "store") == content(corpus / "whole")


def test_a_directory_that_may_not_be_written(corpus: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"store: it can't be written \(Permission denied\); name another directory"):
        prepare(INPUTS, tokenizer, "store", **PREPARE)


def test_a_worker_that_dies_is_said(corpus: Path, tokenizer: Any) -> None:
    def end(read: int, tokens: int) -> None:
        for child in workers():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)

    with pytest.raises(UserError, match=r"a worker process ended early, perhaps for lack of memory; the same command"):
        prepare(INPUTS, tokenizer, "store", **PREPARE | {"workers": 1}, watch=end)
    assert not workers()
    prepare(INPUTS, tokenizer, "store", **PREPARE)


def test_what_is_watched(corpus: Path, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    store = prepare(INPUTS, tokenizer, "store", **PREPARE, watch=lambda *values: seen.append(values))
    assert sum(tokens for _, tokens in seen) == store.manifest["tokens"]
    assert [read for read, _ in seen] == sorted(read for read, _ in seen)
    assert seen[-1][0] == sum(Path(name).stat().st_size for name in INPUTS)


def test_the_output_may_lie_among_the_input(corpus: Path, tokenizer: Any) -> None:
    store = prepare(["."], tokenizer, "store", **PREPARE)
    assert len(store) == 400
    assert prepare(["."], tokenizer, "store", **PREPARE).manifest == store.manifest


def test_arguments(corpus: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="deduplicate must be one of none, exact, near, got 'fuzzy'"):
        prepare(INPUTS, tokenizer, "store", deduplicate="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got 0 and None"):
        prepare(INPUTS, tokenizer, "store", shard_tokens=0)
    with pytest.raises(UserError, match="got 33554432 and -1"):
        prepare(INPUTS, tokenizer, "store", workers=-1)


def test_documents_of_all_lengths_lie_behind_each_other(corpus: Path, tokenizer: Any) -> None:
    store = prepare(INPUTS, tokenizer, "store", **PREPARE)
    ends = np.cumsum([shard["documents"] for shard in store.manifest["shards"]])
    for number in (0, int(ends[0]) - 1, int(ends[0]), len(store) - 1):
        assert tokenizer.decode(store.read(number)) == LINES[number]
