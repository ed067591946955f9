"""Pairs: true ones follow each other, false ones do not, and nothing but the content tells them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.corpus.pairs import PairRows
from llm_arch.corpus.pieces import cut
from llm_arch.corpus.surfaces import Sentences
from llm_arch.data.loader import RowNumbers

STOP = 1  # ends a sentence
_IDS = 3 * 10**6
SENTENCES = Sentences(np.arange(_IDS) == STOP, np.zeros(_IDS, dtype=bool), None)


class Memory:
    """Documents in memory; every token is the place where it lies, but for those that end sentences."""

    directory = "memory"

    def __init__(self, lengths: list[int], sentence: int = 6, keys: list[int] | None = None) -> None:
        self.lengths = np.array(lengths)
        self.text_bytes = 4 * self.lengths
        self.keys = np.array(keys if keys is not None else range(len(lengths)))
        self.documents = []
        for number, length in enumerate(lengths):
            tokens = 1000 * (number + 1) + np.arange(length)
            tokens[np.arange(length) % sentence == sentence - 1] = STOP
            self.documents.append(tokens)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, document: int, start: int = 0, stop: int | None = None) -> Any:
        return self.documents[document][start:stop]


def rows(store: Memory, size: int = 30, objective: Any = "nsp", training: bool = False) -> PairRows:
    pieces = cut(np.arange(len(store)), store.lengths, store.text_bytes, size, shortest=2)
    return PairRows(store, pieces, training=training, objective=objective, sentences=SENTENCES)


def pairs(made: PairRows, numbers: list[int] | None = None, epoch: int = 0) -> list[tuple[list[int], list[int], int]]:
    columns = made[RowNumbers(numbers if numbers is not None else range(len(made)), epoch)]
    firsts = np.split(columns["tokens"], np.cumsum(columns["sizes"])[:-1])
    seconds = np.split(columns["second_tokens"], np.cumsum(columns["second_sizes"])[:-1])
    return [
        (a.tolist(), b.tolist(), label) for a, b, label in zip(firsts, seconds, columns["label"].tolist(), strict=True)
    ]


def tokens_of(made: PairRows, number: int) -> list[int]:
    pieces = made.pieces
    start = int(pieces.start[number])
    return list(made.store.read(int(pieces.document[number]), start, start + int(pieces.length[number])).tolist())


def document_of(tokens: list[int]) -> int:
    [found] = {token // 1000 - 1 for token in tokens if token != STOP} or {-1}
    return found


LENGTHS = st.lists(st.integers(1, 70), min_size=2, max_size=8)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(3, 40), st.integers(0, 20))
def test_next_sentences(lengths: list[int], size: int, epoch: int) -> None:
    made = rows(Memory(lengths), size)
    if len(np.unique(made.pieces.document)) < 2:
        return
    for number, (first, second, label) in enumerate(pairs(made, epoch=epoch)):
        piece = tokens_of(made, number)
        assert first
        assert second
        assert piece[: len(first)] == first
        if label == 0:
            assert first + second == piece
        else:
            assert len(first) + len(second) <= len(piece)
            if set(second) != {STOP}:
                other = document_of(second)
                assert other != int(made.pieces.document[number])
                whole = made.store.read(other).tolist()
                place = whole.index(next(t for t in second if t != STOP)) - [t != STOP for t in second].index(True)
                assert whole[place : place + len(second)] == second


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(3, 40), st.integers(0, 20))
def test_sentence_order(lengths: list[int], size: int, epoch: int) -> None:
    made = rows(Memory(lengths), size, "sop")
    for number, (first, second, label) in enumerate(pairs(made, epoch=epoch) if len(made) else []):
        assert first
        assert second
        assert (second + first if label else first + second) == tokens_of(made, number)


def test_half_of_the_pairs_are_wrong_and_epochs_differ() -> None:
    made = rows(Memory([20] * 2000))
    for objective in ("nsp", "sop"):
        made = rows(Memory([20] * 2000), objective=objective)
        labels = [np.array([label for *_, label in pairs(made, epoch=epoch)]) for epoch in range(4)]
        for one in labels:
            assert abs(one.mean() - 0.5) < 0.06
        assert abs(np.mean(labels[0] == labels[1]) - 0.5) < 0.06
        assert {tuple(one) for one in labels} == {tuple(one) for one in labels[:4]}


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_a_pure_function_of_the_piece(objective: Any) -> None:
    made = rows(Memory([50, 7, 33, 90, 12, 64]), objective=objective)
    together = pairs(made, epoch=3)
    order = np.random.default_rng(0).permutation(len(made)).tolist()
    assert pairs(made, order, epoch=3) == [together[i] for i in order]
    assert [pairs(made, [i], epoch=3)[0] for i in range(len(made))] == together


def test_the_seed_of_the_run_counts_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for training in (True, False):
        made = rows(Memory([50] * 20), training=training)
        for seed in ("1", "2"):
            monkeypatch.setenv("PL_GLOBAL_SEED", seed)
            found[training, seed] = pairs(made)
    assert found[True, "1"] != found[True, "2"]
    assert found[False, "1"] == found[False, "2"]


def test_texts_that_are_equal_are_no_other_documents() -> None:
    """Nearly all documents have the same text, so that the few others must be looked for."""
    store = Memory([30] * 400, keys=[7] * 398 + [8, 9])
    made = rows(store)
    false = [(first, second) for first, second, label in pairs(made) if label]
    assert len(false) > 150
    for first, second in false:
        assert store.keys[document_of(first)] != store.keys[document_of(second)]


# What must not give the answer away


def described(store: Memory, size: int) -> dict[int, list[list[bool | int]]]:
    made = rows(store, size)
    found: dict[int, list[list[bool | int]]] = {0: [], 1: []}
    for epoch in range(3):
        for first, second, label in pairs(made, epoch=epoch):
            whole = store.read(document_of(second)).tolist()
            place = [whole.index(t) for t in second if t != STOP][:1]
            begins = bool(place) and place[0] % 6 == 0
            ends = whole[-1] == second[-1]
            found[label].append([len(first) + len(second), len(first), begins, ends])
    return found


@pytest.mark.parametrize(("lengths", "size"), [([300], 60), ([20, 80], 60), ([35], 60)])
def test_false_pairs_look_like_true_ones(lengths: list[int], size: int) -> None:
    random = np.random.default_rng(0)
    low, high = lengths[0], lengths[-1]
    store = Memory(random.integers(low, high + 1, 250).tolist())
    true, false = (np.array(described(store, size)[label], dtype=float).mean(0) for label in (0, 1))
    assert abs(true[0] - false[0]) < 2.5  # all tokens: a false half may begin with a sentence a little later
    assert abs(true[1] - false[1]) < 2
    assert true[2] > 0.93  # some short pieces hold no beginning of a sentence
    assert abs(true[2] - false[2]) < 0.06  # begins with a sentence
    assert abs(true[3] - false[3]) < 0.06  # ends with its document


def test_full_pieces_stay_full() -> None:
    """Or the length would tell."""
    store = Memory([600] * 50)
    made = rows(store, 60)
    full = [len(a) + len(b) for number, (a, b, _) in enumerate(pairs(made)) if (number + 1) % 10]
    assert set(full) == {60}


def test_without_sentences_any_token_will_do() -> None:
    made = rows(Memory([40] * 300, sentence=1000), 40)
    cuts = [len(first) for first, *_ in pairs(made)]
    assert min(cuts) == 1
    assert max(cuts) == 39
    assert abs(np.mean(cuts) - 20) < 2.5
    assert all(len(first) + len(second) == 40 for first, second, _ in pairs(made))


def test_bytes_follow_the_tokens() -> None:
    made = rows(Memory([50, 7, 33, 90, 12, 64]))
    columns = made[RowNumbers(range(len(made)), 1)]
    assert columns["text_bytes"].tolist() == pytest.approx(4 * (columns["sizes"] + columns["second_sizes"]), abs=2)
