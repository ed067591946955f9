"""`llm-arch tokenizer`: text in, a tokenizer's directory and a report out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.data.tokenizers import load_tokenizer

LINES = [
    "the lamp in the kitchen is warm",
    "the lamp in the hall is cold",
    "厨房的灯很暖和",
    "turn it off and on again",
]


@pytest.fixture
def tokenizer_verb(here: Path, run: Any) -> Callable[..., Any]:
    (here / "corpus").mkdir()
    (here / "corpus" / "a.txt").write_text("\n".join(LINES * 10), encoding="utf-8")
    (here / "corpus" / "b.txt").write_text("\n".join(reversed(LINES * 5)), encoding="utf-8")
    return lambda *arguments: run("tokenizer", *arguments)


def numbers(printed: str) -> dict[str, str]:
    """The report's only row by its heads."""
    lines = printed.splitlines()
    head = next(i for i, line in enumerate(lines) if "tokens/word" in line)
    row = next(line for line in lines[head + 1 :] if re.search(r"\d", line))
    return dict(zip(lines[head].split(), row.split(), strict=True))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_from_text_to_a_directory(tokenizer_verb: Any, kind: str) -> None:
    done = tokenizer_verb("--input", "corpus", "--kind", kind, "--vocabulary", "300", "--output", "new/tokenizer")
    assert (done.code, done.err) == (0, "")
    tokenizer = load_tokenizer("new/tokenizer")
    assert len(tokenizer) <= 300
    assert max(map(len, done.out.splitlines())) <= 100
    found = numbers(done.out)
    assert found["documents"] == "3"  # every twentieth of sixty lines
    assert 1 <= float(found["tokens/word"]) < 8
    assert found["unknown"] == "0.000%"
    assert "measured on documents held out of training" in done.out
    assert f"saved: new/tokenizer, {len(tokenizer)} tokens" in done.out
    assert done.out.endswith("llm-arch prepare --input corpus --tokenizer new/tokenizer --output DIR\n")
    if len(tokenizer) < 300:
        assert f"note: the text gave {len(tokenizer)} of 300 tokens" in done.out


def test_options_reach_the_training(tokenizer_verb: Any) -> None:
    Path("rows.jsonl").write_text('{"story": "The LAMP the LAMP"}\n' * 3)
    done = tokenizer_verb(
        *("--input", "rows.jsonl", "--column", "story", "--kind", "wordpiece", "--vocabulary", "60", "--lowercase"),
        *("--special-tokens", "<room>", "<hall>", "--min-frequency", "1", "--output", "out"),
    )
    assert (done.code, done.err) == (0, "")
    tokenizer = load_tokenizer("out")
    found = tokenizer.tokenize("the LAMP<room><hall>")
    assert found == ["the", "lamp", "<room>", "<hall>"]
    assert "measured on the training text: too few documents" in done.out
    assert numbers(done.out)["documents"] == "3"


def test_an_older_tokenizer_is_replaced_when_asked(tokenizer_verb: Any) -> None:
    for size, more in (("300", ()), ("320", ("--overwrite",))):
        done = tokenizer_verb("--input", "corpus", "--vocabulary", size, "--output", "out", *more)
        assert done.code == 0, done.err
        assert len(load_tokenizer("out")) <= int(size)
    assert len(load_tokenizer("out")) > 300


def test_a_document_may_be_a_paragraph_or_a_file(tokenizer_verb: Any) -> None:
    for unit, count in (("line", "3"), ("file", "1")):
        arguments = ("--input", "corpus/a.txt", "corpus/b.txt", "--documents", unit, "--vocabulary", "300")
        done = tokenizer_verb(*arguments, "--output", unit)
        assert numbers(done.out)["documents"] == (count if unit == "line" else "2")


def test_wrong_input(tokenizer_verb: Any) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("taken").mkdir()
    (Path("taken") / "mine").write_text("mine")
    before = sorted(str(path) for path in Path().rglob("*"))

    def sentence(*changed: str) -> str:
        options = {"--input": "corpus", "--vocabulary": "300", "--output": "out"}
        options |= dict(zip(changed[::2], changed[1::2], strict=True))
        said: str = tokenizer_verb(*(part for pair in options.items() for part in pair)).sentence
        return said

    assert sentence("--input", "nope.txt").startswith("nope.txt: no such file or folder")
    assert sentence("--input", "empty.txt") == "there is no text to train a tokenizer on; name files with text in them"
    assert sentence("--output", "taken") == "taken already exists; name another directory, or remove it first"
    more = ("--input", "corpus", "--vocabulary", "300", "--output", "taken", "--overwrite")
    assert tokenizer_verb(*more).sentence.startswith("taken holds more than a tokenizer (")
    assert sentence("--vocabulary", "20") == (
        "a bpe vocabulary has at least 259 tokens, one for every byte, got 20; take a larger one"
    )
    assert "different characters" in sentence("--kind", "wordpiece", "--vocabulary", "20")
    assert sentence("--kind", "unigram", "--min-frequency", "2").startswith("min_frequency is for wordpiece and bpe")
    assert sentence("--vocabulary", "many").startswith("argument --vocabulary: invalid int value: 'many'; see llm-arch")
    assert sentence("--vocabulry", "20").startswith("unknown option --vocabulry; did you mean --vocabulary?")
    assert sorted(str(path) for path in Path().rglob("*")) == before
