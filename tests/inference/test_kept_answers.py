"""What is kept of rows is what was said of them, whatever batches they come in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_arch.data.collate import make_batch
from llm_arch.inference.kept_answers import Answer, KeptAnswers, kept, row_hashes, row_of_token
from llm_arch.types import Batch

LENGTHS = [3, 1, 4, 2, 5, 6]
WORDS = [2, 0, 3, 1, 1, 4]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = [torch.randn(words + 1, 2, generator=GENERATOR) for words in WORDS]  # of words, then of the row
STATES = [torch.randn(length, 4, generator=GENERATOR).bfloat16() for length in LENGTHS]


def batch_of(rows: list[int], layout: str = "flat", shift: int = 0) -> Batch:
    columns: dict[str, list[Any]] = {
        "input_ids": [[10 * row + place + shift for place in range(LENGTHS[row])] for row in rows],
        "token_type_ids": [None] * len(rows),
        "index": rows,
        "windows": [[2, 3] if row == 4 else None for row in rows],
        "word_token": [[0] * WORDS[row] for row in rows],
        "word_start": [[0] * WORDS[row] for row in rows],
        "word_end": [[1] * WORDS[row] for row in rows],
    }
    return make_batch(columns, layout)


def rows_of_logits(batch: Batch) -> Tensor:
    assert batch.words is not None
    return torch.cat([batch.words.row, torch.arange(batch.rows)])


def logits_of(rows: list[int]) -> Tensor:
    """As a head has them: those of all words, then those of all rows."""
    return torch.cat([*(LOGITS[row][:-1] for row in rows), *(LOGITS[row][-1:] for row in rows)])


def answers(*batches: list[int]) -> Iterator[tuple[Batch, Mapping[str, Answer]]]:
    for rows in batches:
        batch = batch_of(rows)
        states = torch.cat([STATES[row] for row in rows])
        found = {
            "logits": Answer(logits_of(rows), rows_of_logits(batch)),
            "states_1": Answer(states, row_of_token(batch)),
        }
        yield batch, found


def made(folder: Path, limit: int = 10**6) -> KeptAnswers | None:
    return kept(folder, len(LENGTHS), lambda: answers([4, 1, 5], [0, 3], [2]), sum(LENGTHS), limit)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KeptAnswers:
    found = made(tmp_path_factory.mktemp("kept") / "one")
    assert found is not None
    return found


@settings(max_examples=30, deadline=None)
@given(rows=st.permutations(range(6)), count=st.integers(1, 6), layout=st.sampled_from(["flat", "padded"]))
def test_any_batch_gets_its_own(store: KeptAnswers, rows: list[int], count: int, layout: str) -> None:
    chosen = list(rows)[:count]
    batch = batch_of(chosen, layout)
    assert store.of_these(batch)
    assert torch.equal(store.get("logits", batch, rows_of_logits(batch)), logits_of(chosen))
    states = store.get("states_1", batch, row_of_token(batch))
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, torch.cat([STATES[row] for row in chosen]))


def test_other_tokens_or_counts_are_noticed(store: KeptAnswers) -> None:
    assert not store.of_these(batch_of([1, 2], shift=1))
    batch = batch_of([1, 2])
    with pytest.raises(ValueError, match="not as many logits for each row"):
        store.get("logits", batch, torch.tensor([0, 1]))


def test_hashes_tell_order_place_and_types_apart() -> None:
    def hash_of(ids: list[int], types: list[int] | None = None) -> int:
        columns = {"input_ids": [ids], "token_type_ids": [types], "index": [0]}
        return int(row_hashes(make_batch(columns)))

    rows: list[tuple[list[int], list[int] | None]] = [
        *(([a, b], None) for a in range(20) for b in range(20)),
        ([0], None),
        ([0, 0, 0], None),
        ([3, 4], [0, 1]),
        ([3, 4], [1, 1]),
    ]
    assert len({hash_of(*row) for row in rows}) == len(rows)
    assert torch.equal(row_hashes(batch_of([0, 4, 2])), row_hashes(batch_of([0, 4, 2], "padded")))


def test_made_once_and_anew_where_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "kept"
    assert made(folder) is not None
    never = kept(folder, 6, lambda: pytest.fail("made again"), sum(LENGTHS), 10**6)
    assert never is not None
    for name in ("logits.bin", "rows.npy", "facts.json"):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content if name != "facts.json" else b"{")
        with pytest.raises(ValueError, match=r"damaged|no answers"):
            KeptAnswers(folder)
        found = made(folder)
        assert found is not None
        batch = batch_of([5])
        assert torch.equal(found.get("logits", batch, rows_of_logits(batch)), logits_of([5]))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["kept", "kept.lock"]


def test_nothing_is_left_of_what_is_too_much_or_fails(tmp_path: Path) -> None:
    assert made(tmp_path / "kept", limit=50) is None

    def fails() -> Iterator[Any]:
        yield from answers([4])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        kept(tmp_path / "kept", 6, fails, sum(LENGTHS), 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.lock"]


def test_old_stores_make_room(tmp_path: Path) -> None:
    size = sum(file.stat().st_size for file in _store(tmp_path / "first").iterdir())
    for age, name in enumerate(("second", "third")):
        _store(tmp_path / name)
        for i, one in enumerate(("first", "second", "third")[: age + 2]):
            os.utime(tmp_path / one, (1000 + i, 1000 + i))
    assert kept(tmp_path / "first", 6, lambda: pytest.fail("made again"), sum(LENGTHS), 10**6) is not None  # used again
    # Four times the limit holds two and a half stores: the ones that were used last stay.
    assert kept(tmp_path / "fourth", 6, lambda: answers(list(range(6))), sum(LENGTHS), int(2.5 * size / 4)) is not None
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"first", "fourth"}


def _store(folder: Path) -> Path:
    assert made(folder) is not None
    return folder
