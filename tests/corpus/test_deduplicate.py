from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.corpus.deduplicate import BANDS, ROWS, Deduplicator, Numbers, bands, shingles

SMALL = st.integers(-20, 20)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(SMALL, max_size=30), max_size=12))
def test_numbers_are_a_set(steps: list[list[int]]) -> None:
    numbers, naive = Numbers(), set[int]()
    for step in steps:
        numbers.add(np.array(step, np.int64))
        naive |= set(step)
        every = np.arange(-21, 22).reshape(-1, 1)
        assert set(every[numbers.holds(every)].tolist()) == naive


def test_numbers_stay_few_runs() -> None:
    numbers = Numbers()
    for i in range(1000):
        numbers.add(np.arange(10 * i, 10 * i + 10))
    assert len(numbers) == 10_000
    assert len(numbers._runs) < 12


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(SMALL, max_size=10), max_size=10), st.integers(0, 10))
def test_exact_keeps_the_first_of_each_key(blocks: list[list[int]], stop: int) -> None:
    deduplicator, seen, kept = Deduplicator("exact"), set[int](), []
    for number, block in enumerate(blocks):
        if number == stop:  # a new process, told what the old one kept
            deduplicator = Deduplicator("exact")
            for documents in kept:
                deduplicator.remember(documents)
        documents = np.array([[1, 1, key] for key in block], np.int64).reshape(-1, 3)
        expected = []
        for key in block:
            expected.append(key not in seen)
            seen.add(key)
        keep = deduplicator.keep(documents)
        assert keep.tolist() == expected
        kept.append(documents[keep])


def test_none_keeps_all() -> None:
    assert Deduplicator("none").keep(np.ones((3, 3), np.int64)).all()


def rows_of(texts: list[str]) -> np.ndarray:
    numbers = np.arange(len(texts))
    return np.concatenate([np.stack([numbers, numbers, numbers], 1), bands(texts)], 1)


def varied(words: list[str], share: float, generator: random.Random) -> str:
    """The words with a share of them replaced."""
    return " ".join(
        generator.choice("xyz") * 9 + str(generator.random()) if generator.random() < share else w for w in words
    )


def jaccard(a: str, b: str) -> float:
    one, two = set(shingles(a)), set(shingles(b))
    return len(one & two) / len(one | two)


def test_near_duplicates_against_the_similarity_itself() -> None:
    generator = random.Random(0)
    texts = []
    for _ in range(60):
        words = [f"w{generator.randrange(10_000)}" for _ in range(300)]
        texts += [" ".join(words), varied(words, 0.002, generator), varied(words, 0.4, generator)]
    keep = Deduplicator("near").keep(rows_of(texts))
    gone = {True: 0, False: 0}
    for first in range(0, len(texts), 3):
        assert keep[first]
        for other in (first + 1, first + 2):
            similarity = jaccard(texts[first], texts[other])
            if similarity > 0.93:
                assert not keep[other]
                gone[True] += 1
            elif similarity < 0.25:
                assert keep[other]
                gone[False] += 1
    assert gone[True] > 50
    assert gone[False] > 50


def test_bands_agree_as_often_as_theory_says() -> None:
    generator = random.Random(1)
    agree, expected = [], []
    for _ in range(150):
        words = [f"w{generator.randrange(10_000)}" for _ in range(200)]
        pair = [" ".join(words), varied(words, 0.03, generator)]
        one, two = bands(pair)
        agree.append((one == two).mean())
        expected.append(jaccard(*pair) ** ROWS)
    assert np.mean(agree) == pytest.approx(np.mean(expected), abs=0.03)
    assert np.mean(expected) > 0.05
    assert bands(pair).shape == (2, BANDS)


def test_case_punctuation_and_short_texts() -> None:
    assert shingles("One, two!") == ["one two"]
    assert shingles("a b c d e f") == ["a b c d e", "b c d e f"]
    assert shingles("!!") == ["!!"]
    keep = Deduplicator("near").keep(rows_of(["Hello, World", "hello world!", "hello worlds", "!!", "??", "!!"]))
    assert keep.tolist() == [True, False, True, True, True, False]


def test_near_resumes_as_it_was() -> None:
    generator = random.Random(2)
    texts = [" ".join(f"w{generator.randrange(2)}" for _ in range(7)) for _ in range(200)]
    rows = rows_of(texts)
    whole = Deduplicator("near").keep(rows)
    assert 0 < whole.sum() < 200
    first = Deduplicator("near")
    head = first.keep(rows[:80])
    second = Deduplicator("near")
    second.remember(rows[:80][head])
    assert np.array_equal(np.concatenate([head, second.keep(rows[80:])]), whole)
