"""Next tokens: every token is predicted once, from what stands before it in its document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.data import NextTokenData
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.heads.language import TokenScore
from llm_arch.heads.language_model import NextTokenPrediction
from llm_arch.types import Prediction

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>")
WORDS = tuple(f"w{i}" for i in range(60))
FIRST, LAST = 4, 5
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def ends(make_words: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with tokens for both ends of a text."""
    return make_words(tmp_path_factory.mktemp("ends"), (*SPECIAL, *WORDS), **NAMES)


@pytest.fixture
def make(ends: str, tmp_path: Path) -> Callable[..., NextTokenData]:
    def build(lines: list[list[int]] | None = None, **options: Any) -> NextTokenData:
        path = None
        if lines is not None:
            path = tmp_path / f"{abs(hash(str(lines)))}.txt"
            path.write_text("".join(" ".join(WORDS[i] for i in line) + "\n" for line in lines))
        defaults: dict[str, Any] = {"tokenizer": ends, "cache_dir": str(tmp_path / "cache"), "max_length": 8}
        train = None if path is None else str(path)
        return NextTokenData(train, **(defaults | {"max_tokens": 30, "validation_fraction": 0.0} | options))

    return build


def cells(data: NextTokenData, batch: Any) -> dict[int, tuple[list[int], list[int], float]]:
    """Inputs, targets and bytes of each row."""
    assert "positions" not in batch.labels
    assert len(batch.labels["targets"]) == len(batch.input_ids)
    return {
        index: (
            batch.input_ids[start : start + length].tolist(),
            batch.labels["targets"][start : start + length].tolist(),
            text_bytes,
        )
        for index, start, length, text_bytes in zip(
            batch.index.tolist(),
            batch.starts.tolist(),
            batch.lengths.tolist(),
            batch.labels["text_bytes"].tolist(),
            strict=True,
        )
    }


def predicted(data: NextTokenData) -> dict[int, list[tuple[int, int]]]:
    """Pairs of a token and the one after it, by document, in order."""
    rows: dict[int, Any] = {}
    for batch in data.train_dataloader():
        rows |= cells(data, batch)
    found: dict[int, list[tuple[int, int]]] = {}
    documents = data.split("train").rows.pieces.document.tolist()
    for index in range(len(documents)):
        inputs, targets, _ = rows[index]
        assert inputs[1:] == targets[:-1]
        assert len(inputs) <= data.max_length
        found.setdefault(documents[index], []).extend(zip(inputs, targets, strict=True))
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=30), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(4, 9),
)
def test_every_token_once(make: Any, lines: list[list[int]], start: bool, end: bool, max_length: int) -> None:
    lines = [*lines, [1, 2, 3]]  # one that gives a cell in any case
    data = make(
        lines,
        max_length=max_length,
        document_start="bos" if start else "none",
        document_end="eos" if end else "none",
    )
    expected = {}
    for number, line in enumerate(lines):
        whole = [*([FIRST] * start), *(len(SPECIAL) + i for i in line), *([LAST] * end)]
        if len(whole) > 1:
            expected[number] = list(zip(whole, whole[1:], strict=False))
    assert predicted(data) == expected


def test_ends_of_documents(make: Any) -> None:
    data = make([list(range(20)), [1]])
    rows: dict[int, Any] = {}
    for batch in data.train_dataloader():
        rows |= cells(data, batch)
    inputs = [rows[i][0] for i in range(4)]
    targets = [rows[i][1] for i in range(4)]
    assert inputs[0] == [FIRST, *range(6, 13)]
    assert inputs[1][0] == targets[0][-1] == 13
    assert targets[2][-1] == LAST
    assert (inputs[3], targets[3]) == ([FIRST, 7], [7, LAST])


def test_tokenizers_of_other_kinds(make: Any, words: str, tokenizer: str, tmp_path: Path) -> None:
    """[CLS] and [SEP] serve where there is nothing else; GPT-2's one token serves for both ends."""
    data = make([[1, 2]], tokenizer=words)
    [batch] = data.train_dataloader()
    assert (batch.input_ids.tolist(), batch.labels["targets"].tolist()) == ([2, 5, 6], [5, 6, 3])
    real = make([[1, 2]], tokenizer=tokenizer, max_length=64, max_tokens=64)
    [batch] = real.train_dataloader()
    loaded = load_tokenizer(tokenizer)
    assert batch.input_ids[0] == loaded.cls_token_id
    assert batch.labels["targets"][-1] == loaded.sep_token_id
    both = make([[1] * 40] * 20, tokenizer="trained:bpe:280", max_length=64, max_tokens=64)
    token = both.tokenizer.bos_token_id
    assert token == both.tokenizer.eos_token_id
    rows: dict[int, Any] = {}
    for batch in both.train_dataloader():
        rows |= cells(both, batch)
    documents = both.split("train").rows.pieces.document.tolist()
    begins = [document not in documents[:i] for i, document in enumerate(documents)]
    assert [rows[i][0][0] == token for i in range(len(rows))] == begins
    assert sum(targets.count(token) for _, targets, _ in rows.values()) == 20


def test_bytes_add_up_to_the_corpus(make: Any) -> None:
    lines = [list(np.random.default_rng(i).integers(0, 60, 3 + 5 * i)) for i in range(12)]
    for options in ({}, {"document_start": "none", "document_end": "none"}):
        data = make(lines, **options)
        total = sum(float(b.labels["text_bytes"].sum()) for b in data.train_dataloader())
        assert total == sum(len(" ".join(WORDS[i] for i in line)) for line in lines)


def test_documents_too_short_to_learn_from(make: Any) -> None:
    data = make([[1], [2, 3], [4]], document_start="none", document_end="none")
    assert len(data.split("train")) == 1
    [note] = data.split("train").facts["notes"]
    assert "2 train documents are too short to learn from and were left out" in note


def test_prompts(make: Any, write_rows: Any) -> None:
    data = make()
    columns, counts = data.encode([{"text": "w1 w2"}, {"text": " ".join(WORDS[:20])}])
    assert columns["input_ids"] == [[FIRST, 7, 8], [FIRST, *range(19, 26)]]  # the end stays
    assert counts == {"truncated": 1}
    whole = {**columns, "index": [0, 1], "epoch": 0}
    assert data.collate(whole, labelled=False).labels["positions"].tolist() == [2, 10]
    padded = make(layout="padded")
    assert padded.collate(whole, labelled=False).labels["positions"].tolist() == [2, 15]
    read = make(predict=write_rows([{"text": "w1 w2"}]))
    [batch] = list(read.predict_dataloader())
    assert batch.input_ids.tolist() == [FIRST, 7, 8]
    assert batch.labels["positions"].tolist() == [2]


def test_tokens_get_their_text(make: Any) -> None:
    found = make().complete(NextTokenPrediction(3, [TokenScore(7, 0.5)]), ("w1", None))
    assert found == NextTokenPrediction(3, [TokenScore(7, 0.5, "w1")])
    assert make().complete(Prediction(3), ("w1", None)) == Prediction(3)


def test_an_example_to_try(make: Any) -> None:
    assert make([list(range(30))]).example("train") == " ".join(WORDS[:12])
