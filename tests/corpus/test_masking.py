"""Masks: how many, of what, with what in their place, and always the same for a piece."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.corpus.masking import Masking, _span_lengths
from llm_arch.corpus.randomness import key_of, random_bits, uniform
from llm_arch.corpus.surfaces import Words
from llm_arch.types import UserError

VOCABULARY, MASK = 60, 4
SPECIAL = np.arange(VOCABULARY) < 5
# Of the others the even ones begin words.
WORDS = Words(SPECIAL | (np.arange(VOCABULARY) % 2 == 0), SPECIAL)
checked = settings(max_examples=150, deadline=None)
SEQUENCES = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40), min_size=1, max_size=8)


def masking(kind: Any = "token", **options: Any) -> Masking:
    return Masking(SPECIAL, MASK, None if kind == "token" else WORDS, kind, **options)


def run(mask: Masking, rows: list[list[int]], index: list[int] | None = None, seed: int = 1, epoch: int = 2) -> Any:
    """The masked places of each row, and what stands there, by row."""
    lengths = np.array([len(row) for row in rows])
    ids = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
    places, new = mask(ids, lengths, np.array(index if index is not None else range(len(rows))), seed, epoch)
    assert (np.diff(places) > 0).all()
    starts = np.cumsum(lengths) - lengths
    row = np.searchsorted(starts, places, side="right") - 1
    found: list[dict[int, int]] = [{} for _ in rows]
    for r, place, token in zip(row.tolist(), (places - starts[row]).tolist(), new.tolist(), strict=True):
        found[r][place] = token
    return found


def words_of(row: list[int]) -> list[list[int]]:
    """Places of the tokens of each word, one after another; special tokens belong to none."""
    words: list[list[int]] = []
    for place, token in enumerate(row):
        if SPECIAL[token]:
            continue
        if token % 2 == 0 or place == 0 or SPECIAL[row[place - 1]]:
            words.append([])
        words[-1].append(place)
    return words


# How many, and of what


@checked
@given(SEQUENCES, st.floats(0.01, 0.99), st.integers(0, 2**62), st.integers(0, 1000))
def test_exactly_the_rate_of_what_is_not_special(rows: Any, rate: float, seed: int, epoch: int) -> None:
    for row, found in zip(rows, run(masking(rate=rate), rows, seed=seed, epoch=epoch), strict=True):
        ordinary = [place for place, token in enumerate(row) if not SPECIAL[token]]
        assert len(found) == (max(1, round(rate * len(ordinary))) if ordinary else 0)
        assert set(found) <= set(ordinary)
        assert all(token == MASK or not SPECIAL[token] for token in found.values())


@checked
@given(SEQUENCES, st.sampled_from(["word", "span"]), st.floats(0.05, 0.6), st.integers(0, 1000))
def test_words_are_never_half_masked(rows: Any, kind: Any, rate: float, seed: int) -> None:
    for row, found in zip(rows, run(masking(kind, rate=rate), rows, seed=seed), strict=True):
        words = words_of(row)
        goal = max(1, round(rate * sum(map(len, words))))
        masked = [word for word in words if set(word) & found.keys()]
        assert all(set(word) <= found.keys() for word in masked)
        assert bool(masked) == bool(words)
        # As near as the last word lets it be.
        if len(masked) > 1:
            assert abs(len(found) - goal) <= max(map(len, words)) / 2


def test_a_very_long_word_is_masked_only_where_there_is_no_other() -> None:
    row = [6, *[7] * 30, *[8] * 30]
    found = [run(masking("word"), [row], [i])[0] for i in range(300)]
    assert all(max(places) > 30 and 4 <= len(places) <= 16 for places in map(list, found) if places != list(range(31)))
    assert all(0 not in places for places in found)
    assert run(masking("word"), [row[:31]])[0].keys() == set(range(31))


def test_all_places_are_as_likely() -> None:
    rows = [list(range(5, 25))] * 4000
    counts = np.zeros(20)
    for found in run(masking(), rows):
        counts[list(found)] += 1
    assert counts.sum() == 3 * 4000
    assert abs(counts - 600).max() < 5 * np.sqrt(600 * 0.85)


# What stands in their place


@pytest.mark.parametrize("kind", ["token", "word", "span"])
@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.1), (1.0, 0.0), (0.5, 0.5), (0.0, 0.0)])
def test_shares(kind: Any, mask_share: float, random_share: float) -> None:
    rows = [list(range(5, 60))] * 1500
    mask = masking(kind, mask_share=mask_share, random_share=random_share)
    pairs = [(rows[0][p], new) for found in run(mask, rows) for p, new in found.items()]
    count = len(pairs)
    masked = sum(new == MASK for _, new in pairs) / count
    same = sum(new == old for old, new in pairs) / count
    error = 5 * 0.5 / np.sqrt(count / (4 if kind == "span" else 1))
    assert abs(masked - mask_share) < error
    # A random token is the same one now and then.
    assert abs(same - (1 - mask_share - random_share + random_share / 55)) < error


def test_random_tokens_are_of_the_whole_vocabulary() -> None:
    rows = [[5] * 40] * 500
    drawn = [new for found in run(masking(mask_share=0.0, random_share=1.0), rows) for new in found.values()]
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert counts[SPECIAL].sum() == 0
    mean = len(drawn) / (~SPECIAL).sum()
    assert abs(counts[~SPECIAL] - mean).max() < 5 * np.sqrt(mean)


# Spans


def test_lengths_of_spans() -> None:
    """P(n) ∝ 0.8ⁿ⁻¹ for n = 1 … 10; 3.8 on average."""
    lengths = _span_lengths(random_bits(key_of(3), np.arange(200_000)))
    expected = 0.8 ** np.arange(10) / (0.8 ** np.arange(10)).sum()
    counts = np.bincount(lengths, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert abs(counts[1:] / len(lengths) - expected).max() < 0.005
    assert abs(lengths.mean() - 3.8) < 0.03


def runs(places: Any) -> list[int]:
    """Lengths of runs of neighbours."""
    parts = np.split(np.array(sorted(places)), np.flatnonzero(np.diff(sorted(places)) > 1) + 1)
    return [len(part) for part in parts]


def test_spans_are_runs() -> None:
    rows = [[6] * 400] * 60
    spans, single = ([n for f in run(masking(kind), rows) for n in runs(f)] for kind in ("span", "word"))
    assert np.mean(single) < 1.4
    assert 3.3 < np.mean(spans) < 4.6  # 3.8, a little more where two touch, a little less where the last is cut
    counts = [len(found) for found in run(masking("span"), rows)]
    assert counts == [60] * 60


def test_a_span_has_one_kind_of_replacement() -> None:
    """Of neighbours nearly all are of one span; with single tokens a third would differ (1 - 0.8² - …)."""
    rows = [[6 + 2 * (i % 20) for i in range(400)]] * 100

    def changes(kind: Any) -> float:
        found = run(masking(kind), rows)
        pairs = [(f[p], f[p + 1]) for f in found for p in f if p + 1 in f]
        return sum((a == MASK) != (b == MASK) for a, b in pairs) / len(pairs)

    assert changes("span") < 0.1 < 0.25 < changes("word")


def test_spans_do_not_cross_special_tokens() -> None:
    """Each half of a pair is masked for itself: a span that begins before the border ends there."""
    row = [*[6] * 5, 2, *[6] * 5]
    found = [run(masking("span", rate=0.5), [row], [i])[0] for i in range(200)]
    assert all(5 not in places and len(places) == 5 for places in found)


# A pure function of seed, epoch and piece


@checked
@given(SEQUENCES, st.sampled_from(["token", "word", "span"]), st.data())
def test_other_pieces_of_the_batch_do_not_matter(rows: Any, kind: Any, data: Any) -> None:
    numbers = data.draw(st.lists(st.integers(0, 10**9), min_size=len(rows), max_size=len(rows), unique=True))
    together = run(masking(kind), rows, numbers)
    order = data.draw(st.permutations(range(len(rows))))
    assert run(masking(kind), [rows[i] for i in order], [numbers[i] for i in order]) == [together[i] for i in order]
    alone = [run(masking(kind), [row], [number])[0] for row, number in zip(rows, numbers, strict=True)]
    assert alone == together


def test_seeds_epochs_and_pieces_differ() -> None:
    row = [list(range(5, 45))]
    found = {
        str(run(masking(), row, [index], seed, epoch)) for index in range(5) for seed in range(5) for epoch in range(5)
    }
    assert len(found) == 125


def test_the_numbers_are_those_of_splitmix64() -> None:
    """The first numbers of the published generator, from seed 0."""
    found = random_bits(np.zeros(1, dtype=np.uint64), np.arange(3)).tolist()
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert key_of(1, 2).dtype == np.uint64
    drawn = uniform(random_bits(key_of(0), np.arange(100_000)))
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert abs(np.histogram(drawn, 20, (0, 1))[0] - 5000).max() < 5 * np.sqrt(5000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "data.mask_rate must be above 0 and below 1, got 0.0"),
        ({"rate": 1.0}, "data.mask_rate must be above 0 and below 1, got 1.0"),
        (
            {"mask_share": 0.8, "random_share": 0.3},
            "data.mask_share and data.random_share must not be negative nor more than 1 together, got 0.8 and 0.3",
        ),
        (
            {"mask_share": -0.1},
            "data.mask_share and data.random_share must not be negative nor more than 1 together, got -0.1 and 0.1",
        ),
    ],
)
def test_impossible_shares(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        masking(**options)
