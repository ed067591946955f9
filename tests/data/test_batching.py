"""Plans: every row once an epoch, within the budget, equally many batches for every rank."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_arch.data.batching import (
    GROUP_WINDOW,
    PLANNED_EPOCHS,
    Cut,
    TrainingPlan,
    evaluation_plan,
    longest_first,
    padding_share,
    round_up,
    shuffled,
    split_to,
)
from llm_arch.types import UserError

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60).map(lambda ns: np.array(ns, dtype=np.int64))
LIMITS = st.tuples(st.none() | st.integers(1, 8), st.none() | st.integers(1, 50)).filter(lambda pair: any(pair))
checked = settings(max_examples=120, deadline=None)


def numbers(batches: list[Any]) -> list[list[int]]:
    return [[int(i) for i in batch] for batch in batches]


def flat(batches: list[Any]) -> list[int]:
    return [i for batch in numbers(batches) for i in batch]


def cost(lengths: list[int], padded: bool) -> int:
    return len(lengths) * max(lengths) if padded else sum(lengths)


def too_much(lengths: list[int], batch_size: int | None, max_tokens: int | None, padded: bool) -> bool:
    many = batch_size is not None and len(lengths) > batch_size
    return many or (max_tokens is not None and cost(lengths, padded) > max_tokens)


def cut_by_hand(order: list[int], lengths: Any, *limits: Any) -> list[list[int]]:
    """One unit after another: a new batch begins where this one would exceed a limit."""
    batches: list[list[int]] = []
    for unit in order:
        if batches and not too_much([int(lengths[i]) for i in [*batches[-1], unit]], *limits):
            batches[-1].append(unit)
        else:
            batches.append([unit])
    return batches


# Cutting


@checked
@given(LENGTHS, LIMITS, st.booleans(), st.randoms(use_true_random=False))
def test_cut_is_greedy(lengths: Any, limits: tuple[int | None, int | None], padded: bool, random: Any) -> None:
    order = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    batches = Cut(lengths, *limits, padded)(np.array(order))
    assert numbers(batches) == cut_by_hand(order, lengths, *limits, padded)


def test_cut_by_hand_examples() -> None:
    lengths, order = np.array([3, 4, 9, 1, 1, 2]), np.arange(6)
    assert numbers(Cut(lengths, 4, None)(order)) == [[0, 1, 2, 3], [4, 5]]
    assert numbers(Cut(lengths, None, 7)(order)) == [[0, 1], [2], [3, 4, 5]]
    assert numbers(Cut(lengths, 2, 7)(order)) == [[0, 1], [2], [3, 4], [5]]
    assert numbers(Cut(lengths, None, 7, padded=True)(order)) == [[0], [1], [2], [3, 4, 5]]
    assert numbers(Cut(lengths, None, 8, padded=True)(order)) == [[0, 1], [2], [3, 4, 5]]  # exactly full


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((None, None), "give data.batch_size (rows a batch) or data.max_tokens (tokens a batch)"),
        ((0, None), "data.batch_size must be at least 1, got 0"),
        ((None, -3), "data.max_tokens must be at least 1, got -3"),
        ((4, 0), "data.max_tokens must be at least 1, got 0"),
    ],
)
def test_impossible_limits(limits: tuple[int | None, int | None], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Cut(np.ones(1, dtype=np.int64), *limits)


# Order


@checked
@given(LENGTHS, st.integers(0, 2**40), st.integers(0, 300), st.none() | st.integers(1, 70))
def test_shuffled(lengths: Any, seed: int, epoch: int, group: int | None) -> None:
    order = shuffled(lengths, seed, epoch, group)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (order == shuffled(lengths, seed, epoch, group)).all()
    assert (order == shuffled(lengths, seed, epoch + PLANNED_EPOCHS, group)).all()
    plain = shuffled(lengths, seed, epoch).tolist()
    for i in range(0, len(order), group or len(order)):
        window = order[i : i + (group or len(order))].tolist()
        assert sorted(window) == sorted(plain[i : i + len(window)])
        if group:
            found = lengths[window].tolist()
            assert found == sorted(found, reverse=True)


def test_orders_differ_by_epoch_and_seed() -> None:
    lengths = np.ones(50, dtype=np.int64)
    orders = {tuple(shuffled(lengths, seed, epoch)) for seed in range(5) for epoch in range(PLANNED_EPOCHS)}
    assert len(orders) == 5 * PLANNED_EPOCHS


def test_orders_are_spread_evenly() -> None:
    lengths = np.ones(4, dtype=np.int64)
    firsts = Counter(int(shuffled(lengths, seed, epoch)[0]) for seed in range(40) for epoch in range(50))
    assert all(abs(firsts[i] - 500) < 100 for i in range(4))


# A wanted number of batches


@checked
@given(LENGTHS, LIMITS, st.data())
def test_split_to_keeps_every_row(lengths: Any, limits: tuple[int | None, int | None], data: Any) -> None:
    batches = Cut(lengths, *limits)(np.arange(len(lengths)))
    count = data.draw(st.integers(1, len(lengths)))
    before = numbers(batches)
    found = split_to(batches, count, lengths)
    assert numbers(batches) == before
    assert len(found) == count
    assert all(len(batch) for batch in found)
    assert sorted(flat(found)) == list(range(len(lengths)))
    if count >= len(batches):
        assert flat(found) == list(range(len(lengths)))
        assert {b[0] for b in before} <= {b[0] for b in numbers(found)}


def test_split_to_halves_the_largest_in_place() -> None:
    lengths = np.array([1, 1, 5, 5, 5, 9, 2, 2])
    batches = [np.array([0, 1]), np.array([2, 3, 4]), np.array([5]), np.array([6, 7])]
    assert numbers(split_to(batches, 5, lengths)) == [[0, 1], [2], [3, 4], [5], [6, 7]]
    assert numbers(split_to(batches, 6, lengths)) == [[0, 1], [2], [3], [4], [5], [6, 7]]
    assert numbers(split_to(batches, 8, lengths)) == [[i] for i in range(8)]


def test_split_to_joins_the_smallest() -> None:
    lengths = np.array([9, 2, 8, 1, 3])
    batches = [np.array([i]) for i in range(5)]
    assert numbers(split_to(batches, 4, lengths)) == [[0], [1, 3], [2], [4]]
    assert numbers(split_to(batches, 3, lengths)) == [[0], [2], [4, 1, 3]]


def test_more_batches_than_rows() -> None:
    message = "2 rows can't be spread over 3 micro-batches (ranks × accumulation): use fewer"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        split_to([np.array([0, 1])], 3, np.ones(2, dtype=np.int64))


@given(st.integers(0, 1000), st.integers(1, 50))
def test_round_up(count: int, multiple: int) -> None:
    found = round_up(count, multiple)
    assert found % multiple == 0
    assert 0 <= found - count < multiple


# Training


@checked
@given(
    lengths=LENGTHS,
    limits=LIMITS,
    padded=st.booleans(),
    group=st.booleans(),
    seed=st.integers(0, 2**40),
    epochs=st.integers(1, 6),
    ranks=st.sampled_from([1, 2, 4]),
    accumulation=st.sampled_from([1, 2, 3]),
)
def test_training_plan(
    lengths: Any,
    limits: tuple[int | None, int | None],
    padded: bool,
    group: bool,
    seed: int,
    epochs: int,
    ranks: int,
    accumulation: int,
) -> None:
    multiple = ranks * accumulation
    assume(len(lengths) >= multiple)
    plan = TrainingPlan(Cut(lengths, *limits, padded), seed, epochs, multiple, group)
    count = plan.micro_batches()
    assert count % multiple == 0
    for epoch in range(epochs):
        batches = plan.epoch(epoch, count)
        assert len(batches) == count
        assert sorted(flat(batches)) == list(range(len(lengths)))
        over = [b for b in batches if len(b) > 1 and too_much(lengths[b].tolist(), *limits, padded)]
        # Only where single rows can't fill a multiple are a few joined.
        spare = len(lengths) // multiple * multiple == count and len(lengths) % multiple
        assert len(over) <= (multiple - 1 if spare else 0)
        assert numbers(plan.epoch(epoch, count)) == numbers(batches)
        by_rank = [batches[rank::ranks] for rank in range(ranks)]
        assert len({len(part) for part in by_rank}) == 1
        assert sorted(i for part in by_rank for i in flat(part)) == list(range(len(lengths)))


def test_no_more_batches_than_the_multiple_asks_for() -> None:
    plan = TrainingPlan(Cut(np.ones(100, dtype=np.int64), 8, None), 0, 3, 4)
    assert plan.micro_batches() == 16  # ceil(100 / 8) = 13, rounded up to a multiple of 4
    tokens = TrainingPlan(Cut(np.arange(1, 60), None, 64), 0, 9, 1)
    assert tokens.micro_batches() == max(
        len(cut_by_hand(shuffled(np.arange(1, 60), 0, e).tolist(), np.arange(1, 60), None, 64, False)) for e in range(9)
    )


def test_epochs_and_seeds_differ() -> None:
    def plan(seed: int) -> TrainingPlan:
        return TrainingPlan(Cut(np.arange(1, 41), 4, None), seed, 3, 1)

    found = [numbers(plan(seed).epoch(epoch, 10)) for seed in (0, 1) for epoch in range(3)]
    assert len({str(batches) for batches in found}) == 6
    assert found[:3] == [numbers(plan(0).epoch(epoch, 10)) for epoch in range(3)]


def test_the_plan_does_not_know_the_ranks() -> None:
    """One device with accumulation 4 and four devices see the same global batches."""
    cut = Cut(np.random.default_rng(0).integers(1, 30, 200), None, 100)
    one, four = TrainingPlan(cut, 3, 2, 1 * 4), TrainingPlan(cut, 3, 2, 4 * 1)
    assert numbers(one.epoch(1, one.micro_batches())) == numbers(four.epoch(1, four.micro_batches()))


def test_single_rows_that_do_not_fill_a_multiple() -> None:
    """Batches of one row, an odd number of them, two devices: the two shortest rows share a batch."""
    lengths = np.array([5, 1, 9, 2, 7])
    plan = TrainingPlan(Cut(lengths, 1, None), 0, 1, 2)
    assert plan.micro_batches() == 4
    assert sorted(sorted(b) for b in numbers(plan.epoch(0, 4))) == [[0], [1, 3], [2], [4]]


def test_too_few_rows_to_train_on() -> None:
    plan = TrainingPlan(Cut(np.ones(3, dtype=np.int64), 1, None), 0, 1, 4)
    message = re.escape("3 rows can't be spread over 4 micro-batches (ranks × accumulation): use fewer")
    with pytest.raises(UserError, match=f"^{message}$"):
        plan.epoch(0, plan.micro_batches())


def test_grouping_makes_batches_of_similar_lengths_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 800)
    shares, orders = {}, {}
    for group in (False, True):
        plan = TrainingPlan(Cut(lengths, 8, None, padded=True), 0, 1, 1, group)
        batches = plan.epoch(0, plan.micro_batches())
        shares[group] = padding_share(batches, lengths)
        orders[group] = [int(lengths[b].max()) for b in batches]
    assert len(lengths) > 8 * GROUP_WINDOW
    assert shares[True] < 0.05 < 0.3 < shares[False]
    falling = sum(a >= b for a, b in zip(orders[True], orders[True][1:], strict=False)) / len(orders[True])
    assert 0.3 < falling < 0.7


# Evaluation


@checked
@given(LENGTHS, st.integers(1, 50), st.booleans(), st.sampled_from([1, 2, 3, 4]))
def test_evaluation_plan(lengths: Any, max_tokens: int, padded: bool, ranks: int) -> None:
    assume(len(lengths) >= ranks)
    batches = evaluation_plan(Cut(lengths, None, max_tokens, padded), ranks)
    assert len(batches) % ranks == 0
    assert all(len(batch) for batch in batches)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    over = [b for b in batches if len(b) > 1 and too_much(lengths[b].tolist(), None, max_tokens, padded)]
    assert len(over) < ranks
    if ranks == 1:
        assert not over
        found = lengths[flat(batches)].tolist()
        assert found == sorted(found, reverse=True)


def test_evaluation_rows_too_long_to_share_a_batch() -> None:
    batches = evaluation_plan(Cut(np.array([9, 9, 8, 9, 7]), None, 10), 2)
    assert sorted(sorted(b) for b in numbers(batches)) == [[0], [1], [2, 4], [3]]


def test_fewer_rows_than_ranks() -> None:
    message = re.escape("2 rows can't be spread over 3 ranks: use fewer ranks or more rows")
    with pytest.raises(UserError, match=f"^{message}$"):
        evaluation_plan(Cut(np.ones(2, dtype=np.int64), None, 10), 3)


def test_padding_share() -> None:
    lengths = np.array([4, 2, 3])
    assert padding_share([np.array([0, 1]), np.array([2])], lengths) == pytest.approx(2 / 11)
    assert padding_share([np.array([0]), np.array([1]), np.array([2])], lengths) == 0


def test_longest_first_moves_nothing_to_another_batch() -> None:
    lengths = np.array([3, 9, 1, 9, 5])
    batches = [np.array([0, 1, 3]), np.array([2]), np.array([2, 4])]
    assert [batch.tolist() for batch in longest_first(batches, lengths)] == [[1, 3, 0], [2], [4, 2]]
