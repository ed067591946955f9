"""Full batches, every piece once an epoch, equally many batches every epoch."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_arch.corpus import packing
from llm_arch.corpus.packing import PackedPlan, best_fit
from llm_arch.types import UserError

checked = settings(max_examples=120, deadline=None)
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60).map(lambda ns: np.array(ns, dtype=np.int64))


def sets(batches: list[Any]) -> list[frozenset[int]]:
    return sorted((frozenset(batch.tolist()) for batch in batches), key=min)


def by_hand(lengths: Any, budget: int, seed: int) -> list[set[int]]:
    """Look at all batches for each piece."""
    batches: list[set[int]] = []
    rooms: list[int] = []
    for piece in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        need = int(lengths[piece])
        fitting = [room for room in rooms if room >= need]
        if not fitting:
            batches.append(set())
            rooms.append(budget)
            fitting = [budget]
        chosen = max(i for i, room in enumerate(rooms) if room == min(fitting))
        batches[chosen].add(piece)
        rooms[chosen] -= need
    return batches


@checked
@given(LENGTHS, st.integers(20, 90), st.integers(0, 99))
def test_best_fit(lengths: Any, budget: int, seed: int) -> None:
    found = best_fit(lengths, budget, seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[batch].sum() <= budget for batch in found)
    expected = by_hand(lengths, budget, seed)
    # Among batches with equal room any is the best, so that only what they hold in tokens is certain.
    assert Counter(int(lengths[b].sum()) for b in found) == Counter(int(lengths[list(b)].sum()) for b in expected)


@checked
@given(
    lengths=LENGTHS,
    budget=st.integers(20, 90),
    seed=st.integers(0, 2**40),
    epochs=st.integers(1, 5),
    ranks=st.sampled_from([1, 2, 4]),
    accumulation=st.sampled_from([1, 2, 3]),
    patterns=st.integers(1, 3),
)
def test_plan(lengths: Any, budget: int, seed: int, epochs: int, ranks: int, accumulation: int, patterns: int) -> None:
    multiple = ranks * accumulation
    assume(len(lengths) >= multiple)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_PACKED_PIECES", patterns * len(lengths))
        plan, again = (PackedPlan(lengths, budget, seed, epochs, multiple) for _ in range(2))
        count = plan.micro_batches()
        assert again.micro_batches() == count
    assert count % multiple == 0
    spare = len(lengths) // multiple * multiple == count and len(lengths) % multiple
    for epoch in (0, 1, epochs - 1, 10**6):
        batches = plan.epoch(epoch, count)
        assert len(batches) == count
        assert all(len(batch) for batch in batches)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        over = [batch for batch in batches if lengths[batch].sum() > budget]
        assert len(over) <= (multiple - 1 if spare else 0)
        assert [b.tolist() for b in again.epoch(epoch, count)] == [b.tolist() for b in batches]
    assert plan.use() == pytest.approx(lengths.sum() / (count * budget))


def test_batches_are_full() -> None:
    """Pieces as documents give them: some of full length, the others of any."""
    random = np.random.default_rng(0)
    lengths = np.where(random.random(5000) < 0.4, 128, random.integers(3, 128, 5000))
    plan = PackedPlan(lengths, 4096, 0, 1, 1)
    assert plan.use() > 0.99
    # The number of batches is rounded up to the next multiple, and no further.
    assert PackedPlan(lengths, 4096, 0, 1, 24).micro_batches() == -(-plan.micro_batches() // 24) * 24


def test_epochs_deal_anew() -> None:
    lengths = np.random.default_rng(1).integers(1, 9, 400)
    plan = PackedPlan(lengths, 64, 5, 3, 1)
    count = plan.micro_batches()
    orders = [[batch.tolist() for batch in plan.epoch(epoch, count)] for epoch in range(3)]
    other = [batch.tolist() for batch in PackedPlan(lengths, 64, 6, 3, 1).epoch(0, count)]
    assert len({str(order) for order in [*orders, other]}) == 4
    together = [{frozenset(batch) for batch in order} for order in orders]
    assert not (together[0] & together[1]) | (together[1] & together[2])


def test_one_pattern_deals_pieces_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """In large corpora batches keep their lengths, and every piece comes to any place of its length."""
    monkeypatch.setattr(packing, "_PACKED_PIECES", 1)
    lengths = np.repeat([2, 3, 7], 40)
    plan = PackedPlan(lengths, 16, 0, 50, 1)
    count = plan.micro_batches()
    shapes, company = set(), Counter[int]()
    for epoch in range(200):
        batches = plan.epoch(epoch, count)
        shapes.add(str(sorted(sorted(lengths[b].tolist()) for b in batches)))
        company.update(next(b for b in batches if 0 in b).tolist())
    assert len(shapes) == 1
    assert len(company) > 110  # of 120
    assert company[0] == 200


def test_rare_lengths_change_their_company() -> None:
    """In a small corpus no two pieces are of one length: other patterns have to do it."""
    lengths = np.arange(10, 60)
    plan = PackedPlan(lengths, 150, 0, 20, 1)
    count = plan.micro_batches()
    company = [next(frozenset(b.tolist()) for b in plan.epoch(epoch, count) if 49 in b) for epoch in range(20)]
    assert len(set(company)) > 15


def test_order_of_batches_is_random() -> None:
    lengths = np.random.default_rng(2).integers(1, 40, 600)
    plan = PackedPlan(lengths, 128, 0, 1, 1)
    fill = [int(lengths[b].sum()) for b in plan.epoch(0, plan.micro_batches())]
    worst = [int(np.argmin([lengths[b].sum() for b in plan.epoch(e, plan.micro_batches())])) for e in range(30)]
    assert max(fill) == 128
    assert len(set(worst)) > 15


def test_ranks_and_accumulation_see_the_same_batches() -> None:
    lengths = np.random.default_rng(3).integers(1, 30, 300)
    one, four = PackedPlan(lengths, 64, 0, 2, 1 * 4), PackedPlan(lengths, 64, 0, 2, 4 * 1)
    assert sets(one.epoch(1, one.micro_batches())) == sets(four.epoch(1, four.micro_batches()))


def test_long_budgets() -> None:
    lengths = np.random.default_rng(4).integers(1, 70_000, 300)
    plan = PackedPlan(lengths, 1 << 17, 0, 1, 1)
    batches = plan.epoch(0, plan.micro_batches())
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    assert max(int(lengths[b].sum()) for b in batches) <= 1 << 17


def test_budget_below_one_piece() -> None:
    message = "data.max_tokens is 8, too few for a sequence of 9 tokens; raise it"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        PackedPlan(np.array([3, 9]), 8, 0, 1, 1)


def test_fewer_pieces_than_ranks() -> None:
    message = "2 rows can't be spread over 3 micro-batches (ranks × accumulation): use fewer"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        PackedPlan(np.array([3, 9]), 9, 0, 1, 3).micro_batches()
