"""Pairs of texts as batches: special tokens, types, labels, and masks on top."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_arch.data import SentencePairData
from llm_arch.data.loader import RowNumbers
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import LabelSpace, UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".")
WORDS = tuple(f"w{i}" for i in range(60))
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def masks(make_words: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_words(tmp_path_factory.mktemp("masks"), (*SPECIAL, *WORDS), mask_token="[MASK]")


def lines(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [
        " ".join(" ".join([*random.choice(WORDS, 4), "."]) for _ in range(random.integers(1, 8))) for _ in range(count)
    ]


@pytest.fixture
def make(masks: str, tmp_path: Path) -> Callable[..., SentencePairData]:
    def build(texts: list[str] | None = None, **options: Any) -> SentencePairData:
        path = None
        if texts is not None:
            path = tmp_path / "corpus.txt"
            path.write_text("".join(f"{line}\n" for line in texts))
        defaults: dict[str, Any] = {"tokenizer": masks, "cache_dir": str(tmp_path / "cache"), "max_length": 24}
        train = None if path is None else str(path)
        return SentencePairData(train, **(defaults | {"max_tokens": 120, "validation_fraction": 0.0} | options))

    return build


def rows_of(batch: Any) -> list[tuple[int, list[int], list[int], int]]:
    """Number, tokens before they were masked, types and label of each row."""
    original = batch.input_ids.clone()
    if "positions" in batch.labels:
        original[batch.labels["positions"]] = batch.labels["targets"]
    parts = [slice(s, s + n) for s, n in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)]
    return [
        (index, original[part].tolist(), batch.token_type_ids[part].tolist(), label)
        for index, part, label in zip(batch.index.tolist(), parts, batch.labels["label"].tolist(), strict=True)
    ]


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("masked", [True, False])
def test_batches(make: Any, masks: str, objective: Any, masked: bool) -> None:
    texts = lines(60)
    data = make(texts, objective=objective, masked=masked)
    documents = [load_tokenizer(masks)(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = data.split("train").rows
    found = [row for batch in data.train_dataloader() for row in rows_of(batch)]
    assert sorted(index for index, *_ in found) == list(range(len(rows)))
    labels = []
    for index, tokens, types, label in found:
        assert (tokens[0], tokens[-1], tokens.count(SEP), tokens.count(CLS)) == (CLS, SEP, 2, 1)
        border = tokens.index(SEP) + 1
        assert types == [0] * border + [1] * (len(tokens) - border)
        first, second = tokens[1 : border - 1], tokens[border:-1]
        start = int(rows.pieces.start[index])
        own = documents[int(rows.pieces.document[index])]
        piece = own[start : start + int(rows.pieces.length[index])]
        if objective == "sop":
            assert (second + first if label else first + second) == piece
        elif label == 0:
            assert first + second == piece
        else:
            assert piece[: len(first)] == first
            holders = [d for d in documents if any(d[i : i + len(second)] == second for i in range(len(d)))]
            assert any(d != own for d in holders)
        labels.append(label)
    assert 0.3 < np.mean(labels) < 0.7


def test_masks_are_those_of_text(make: Any) -> None:
    data = make(lines(40), mask_rate=0.25)
    for batch in data.train_dataloader():
        assert not set(batch.labels["targets"].tolist()) & {CLS, SEP}
        for number, (_, tokens, *_) in enumerate(rows_of(batch)):
            asked = int((batch.segments[batch.labels["positions"]] == number).sum())
            assert asked == max(1, round(0.25 * (len(tokens) - 3)))
    assert "positions" not in next(iter(make(lines(40), masked=False).train_dataloader())).labels


def test_the_same_batch_again(make: Any) -> None:
    data = make(lines(40))
    for epoch in (0, 1):
        found = []
        for numbers in ([3, 1, 7], [7, 3], [1]):
            rows = RowNumbers(numbers, epoch)
            batch = data.collate({**data.split("train").rows[rows], "index": numbers, "epoch": epoch})
            found.append({index: str(row) for index, *row in rows_of(batch)})
        assert found[0] == found[1] | found[2]


def test_validation_is_the_same_in_every_run(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = make(lines(40), validation_fraction=0.3)
        found.append([(b.input_ids.tolist(), rows_of(b)) for b in data.val_dataloader()])
    assert found[0] == found[1]


def test_label_space(make: Any) -> None:
    assert make().label_space == LabelSpace(("next", "random"))
    assert make(objective="sop").label_space == LabelSpace(("in_order", "swapped"))
    record = make(objective="sop", masked=False).record()
    again = SentencePairData.for_model("x", LabelSpace(("in_order", "swapped")), record)
    assert (again.objective, again.with_masks) == ("sop", False)
    assert again.label_space.names == ("in_order", "swapped")


def test_rows_to_predict(make: Any, write_rows: Any) -> None:
    rows = write_rows([{"text": "w1 [MASK] .", "text_pair": "w2 ."}])
    data = make(predict=rows)
    [batch] = list(data.predict_dataloader())
    assert batch.input_ids.tolist() == [CLS, 7, MASK, 5, SEP, 8, 5, SEP]
    assert batch.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.labels["positions"].tolist() == [2]
    [batch] = list(make(predict=rows, masked=False).predict_dataloader())
    assert batch.labels["positions"].tolist() == []
    assert data.columns == {"text": True, "text_pair": True}


def test_a_tokenizer_without_masks_serves_without_masks(make: Any, words: str) -> None:
    data = make(lines(20), tokenizer=words, masked=False)
    assert len(list(data.train_dataloader())) > 1
    with pytest.raises(UserError, match="has no mask token"):
        make(lines(20), tokenizer=words).split("train")


def test_documents_of_a_single_token(make: Any) -> None:
    data = make(["w1", "w2 w3", "w4 . w5", "w6"])
    assert data.split("train").facts["documents"] == 2
    assert any("2 train documents are too short to learn from" in note for note in data.split("train").facts["notes"])


def refused(message: str) -> Any:
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


def test_a_single_document(make: Any) -> None:
    for texts in (["w1 . w2 w3 ."], ["w1 . w2 w3 ."] * 5):
        data = make(texts)
        with refused(
            f"{data.sources['train']}: a training split has a single document, and no other to take a "
            f"wrong sentence from; name more documents, or set data.objective to sop"
        ):
            data.split("train")
        assert len(make(texts, objective="sop").split("train")) == len(texts)


def test_sequences_too_short_for_pairs(make: Any) -> None:
    with refused("data.max_length is 6, too short for pairs; set it to 7 or more"):
        make(lines(9), max_length=6).split("train")


def test_other_objectives(make: Any) -> None:
    with refused("data.objective must be nsp or sop, got 'order'"):
        make(objective="order")
