from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_arch.corpus.shards import Store
from llm_arch.types import UserError


@pytest.fixture
def words(here: Path) -> Path:
    """A tokenizer and a corpus in the working directory."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained("words")
    Path("corpus.txt").write_text("a b\nb a c\n\na b\n")
    return here


def prepare(run: Any, *arguments: str, source: str = "corpus.txt") -> Any:
    return run("prepare", "--input", source, "--tokenizer", "words", "--output", "my store", *arguments)


def test_a_corpus_is_prepared(run: Any, words: Path) -> None:
    Path("empty.txt").write_text("")
    done = prepare(run, "empty.txt", source="corpus.txt")
    assert done.code == 2  # a stray argument
    done = run("prepare", "--input", "corpus.txt", "empty.txt", "--tokenizer", "words", "--output", "my store")
    assert (done.code, done.err) == (0, "")
    store = Store.open("my store", check=True)
    assert [store.read(i).tolist() for i in range(len(store))] == [[1, 2], [2, 1, 0], [1, 2]]
    header, _, row = [line.split() for line in done.out.splitlines() if line.strip()][1:4]
    assert header == [
        "documents",
        "tokens",
        "bytes",
        "tokens/byte",
        "tokens/document",
        "skipped",
        "duplicates",
        "speed",
    ]
    assert row[:6] == ["3", "7", "11", "0.636", "2.3", "1"]
    assert row[6:8] == ["not", "sought"]
    assert row[-1] == "tokens/s"
    assert "skipped: 1 empty\n  empty.txt: empty\n" in done.out
    assert "note: documents are short; if blank lines separate yours, say --documents block" in done.out
    assert "saved: my store, uint16, 1 shards" in done.out
    assert "  llm-arch fit -c pretrain/mlm --data.train 'my store' --output runs/mlm\n" in done.out
    again = run("prepare", "--input", "corpus.txt", "empty.txt", "--tokenizer", "words", "--output", "my store")
    assert again.code == 0
    assert "was finished" in again.out


def test_options(run: Any, words: Path) -> None:
    done = prepare(run, "--documents", "block", "--deduplicate", "exact", "--workers", "1", "--shard-tokens", "1")
    assert done.code == 0, done.err
    store = Store.open("my store")
    assert [store.read(i).tolist() for i in range(len(store))] == [[1, 2, 2, 1, 0], [1, 2]]
    assert prepare(run).sentence.startswith(
        "my store holds a store with documents block instead of auto; replace it with --overwrite"
    )
    done = prepare(run, "--deduplicate", "exact", "--overwrite")
    assert Store.open("my store").manifest["duplicates"] == 1
    Path("rows.jsonl").write_text(json.dumps({"body": "a a"}) + "\n")
    assert prepare(run, "--column", "body", "--overwrite", source="rows.jsonl").code == 0
    assert Store.open("my store").read(0).tolist() == [1, 1]


def test_wrong_input(run: Any, words: Path) -> None:
    assert prepare(run, source="none.txt").sentence.startswith("none.txt: no such file or folder; check the path")
    assert prepare(run, "--workers", "-1").sentence == "--workers must be 0 or more, got -1"
    assert prepare(run, "--shard-tokens", "0").sentence == "--shard-tokens must be positive, got 0"
    assert "--documents" in prepare(run, "--documents", "page").sentence
    assert "did you mean --documents?" in prepare(run, "--document", "line").sentence
    done = run("prepare", "--input", "corpus.txt", "--tokenizer", "./none", "--output", "out")
    assert done.sentence.startswith("./none: no such directory")
    Path("plain").mkdir()
    done = run("prepare", "--input", "corpus.txt", "--tokenizer", "./plain", "--output", "out")
    assert done.sentence.endswith("name a directory that has one with --tokenizer")
    assert not Path("out").exists()
    assert not Path("my store").exists()


def test_a_full_disk_and_an_interruption_say_how_to_go_on(
    run: Any, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert prepare(run).sentence.startswith("my store: the disk is full (No space left on device)")

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llm_arch.corpus.writer.Writer.end_shard", stop)
        done = prepare(run, "--documents", "line", "--overwrite")
    assert done.code == 130
    command = "llm-arch prepare --input corpus.txt --tokenizer words --output 'my store' --documents line"
    assert f"go on with {command}\n" in done.err
    with pytest.raises(UserError, match="not finished") as caught:
        Store.open("my store")
    assert str(caught.value).endswith(f"go on with {command}")
    assert prepare(run, "--documents", "line").code == 0


def test_going_on_is_said(run: Any, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llm_arch.corpus.reading.BLOCK_BYTES", 4)
    with monkeypatch.context() as patch:
        patch.setattr("llm_arch.corpus.writer.Writer.finish", full)
        assert prepare(run, "--shard-tokens", "2").code == 2
    Path("my store/journal.jsonl").write_text(
        "".join(Path("my store/journal.jsonl").read_text().splitlines(keepends=True)[:2])
    )
    done = prepare(run, "--shard-tokens", "2")
    assert done.code == 0, done.err
    assert "note: went on with an earlier run, which had made 5 tokens" in done.out
    assert len(Store.open("my store", check=True)) == 3


def test_help(run: Any) -> None:
    done = run("prepare", "--help")
    assert done.code == 0
    for option in ("--input", "--tokenizer", "--output", "--documents", "--deduplicate", "--workers"):
        assert option in done.out
