"""Rows of which words are masked: which ones, how many, and that nothing else depends on it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.completion import CompletionData
from llm_arch.data.masked_rows import MaskedRows
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.types import UserError

ROWS = 4000
LENGTH = 20


class Tokens:
    """A tokenizer of a hundred tokens, of which the first five are special."""

    mask_token_id, pad_token_id, unk_token_id, eos_token_id = 3, 0, 1, None
    all_special_ids = [0, 1, 2, 3, 4]

    def __len__(self) -> int:
        return 100

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(100)}


def _columns(index: list[int], epoch: int = 0) -> dict[str, Any]:
    ids = [[2, *((7 * i + j) % 90 + 5 for j in range(LENGTH)), 4] for i in index]
    return {"input_ids": ids, "index": index, "epoch": epoch}


def test_as_many_rows_and_any_share_of_each() -> None:
    given_ = _columns([*range(ROWS)])
    found = MaskedRows(0.3, Tokens())(given_, seed=1)["input_ids"]
    counts = []
    for before, after in zip(given_["input_ids"], found, strict=True):
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert all(after[i] == 3 for i in changed)
        assert (after[0], after[-1]) == (2, 4)
        counts.append(len(changed))
    # Of a share that is uniform in [0, 1] each number of the 20 tokens is as probable: 1 in 21 of the masked rows.
    masked = sum(count > 0 for count in counts)
    assert masked / ROWS == pytest.approx(0.3 * 20 / 21, abs=0.03)
    frequency = Counter(counts)
    expected = 0.3 * ROWS / 21
    chi = sum((frequency[n] - expected) ** 2 / expected for n in range(1, 21))
    assert chi < 50  # 20 degrees of freedom: exceeded once in 4,000 draws


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(30)), st.integers(1, 29), st.integers(0, 5))
def test_a_row_is_masked_alike_in_any_company(order: list[int], size: int, epoch: int) -> None:
    masks = MaskedRows(0.7, Tokens())
    whole = masks(_columns([*range(30)], epoch), seed=5)["input_ids"]
    part = masks(_columns(order[:size], epoch), seed=5)["input_ids"]
    assert [list(row) for row in part] == [list(whole[i]) for i in order[:size]]


def test_epochs_and_seeds_differ_and_the_rows_stay() -> None:
    masks, columns = MaskedRows(1.0, Tokens()), _columns([*range(50)])
    first = masks(columns, seed=0)["input_ids"]
    assert first != masks(columns, seed=1)["input_ids"]
    assert first != masks(columns | {"epoch": 1}, seed=0)["input_ids"]
    assert columns["input_ids"] == _columns([*range(50)])["input_ids"]


def test_training_batches_are_masked_and_no_others(tokenizer: str, tmp_path: Any) -> None:
    rows = [f"turn on the light number {i} in the kitchen,{'on' if i % 2 else 'off'}" for i in range(80)]
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")

    def share(loader: Any, mask: int) -> float:
        batches = list(loader)
        masked = sum(int((batch.input_ids == mask).sum()) for batch in batches)
        return masked / sum(len(batch.input_ids) for batch in batches)

    def made(mask_tokens: float) -> TextClassificationData:
        return TextClassificationData(str(file), tokenizer=tokenizer, cache_dir=str(tmp_path), mask_tokens=mask_tokens)

    data = made(0.5)
    mask = data.tokenizer.mask_token_id
    assert 0.12 < share(data.train_dataloader(), mask) < 0.35
    assert share(data.val_dataloader(), mask) == 0
    assert share(data.evaluation_loader("train", alone=True), mask) == 0  # what a teacher reads
    assert data.record()["mask_tokens"] == 0.5
    plain = made(0.0)
    assert share(plain.train_dataloader(), mask) == 0
    assert "mask_tokens" not in plain.record()
    for masked, whole in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert masked.lengths.tolist() == whole.lengths.tolist()
        kept = masked.input_ids != mask
        assert masked.input_ids[kept].tolist() == whole.input_ids[kept].tolist()
        assert masked.labels["label"].tolist() == whole.labels["label"].tolist()


def test_what_can_not_be_masked_says_so(tokenizer: str) -> None:
    with pytest.raises(UserError, match=r"must be in \[0, 1\], got 1.5"):
        TextClassificationData("smart_home", tokenizer=tokenizer, mask_tokens=1.5)
    for kind in (NextTokenData, CompletionData):
        with pytest.raises(UserError, match="learns the tokens of its rows"):
            kind("rows.jsonl", tokenizer=tokenizer, mask_tokens=0.5)

    class Nothing(Tokens):
        mask_token_id = pad_token_id = unk_token_id = None  # type: ignore[assignment]

    with pytest.raises(UserError, match="none that could stand for it"):
        MaskedRows(0.5, Nothing())


def test_a_tokenizer_without_a_mask_takes_another_token() -> None:
    class NoMask(Tokens):
        mask_token_id = None  # type: ignore[assignment]

    found = MaskedRows(1.0, NoMask())(_columns([*range(100)]), seed=0)["input_ids"]
    assert 0 in np.concatenate([np.asarray(row) for row in found])
