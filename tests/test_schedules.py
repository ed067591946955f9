"""Schedules against their closed forms, and over a run that is interrupted."""

import io
import math
import pickle

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from llm_arch.adamw import RowAdamW
from llm_arch.schedules import Constant, Cosine, Linear, Schedule
from llm_arch.types import UserError


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


shares = st.floats(0, 0.99)
step_counts = st.integers(1, 300)


@given(warmup=shares | st.integers(1, 400), final=st.floats(0, 1), steps=step_counts)
def test_schedules_follow_their_closed_forms(warmup, final, steps):
    rise = warmup if warmup >= 1 else round(warmup * steps)
    linear, cosine, constant = Linear(warmup, final), Cosine(warmup, final), Constant(warmup)
    for step in range(steps + 2):
        if step < rise:
            expected = [(step + 1) / rise] * 3
        else:
            x = min((step - rise) / (steps - rise), 1) if steps > rise else min(step - rise, 1)
            expected = [x * final + (1 - x), final + (1 - final) * 0.5 * (1 + math.cos(math.pi * x)), 1.0]
        found = [schedule.factor_at(step, steps) for schedule in (linear, cosine, constant)]
        assert found == pytest.approx(expected, abs=1e-12)
        if step < steps:
            assert all(0 < factor <= 1 for factor in found)


@given(warmup=shares, steps=step_counts)
def test_schedules_rise_then_fall(warmup, steps):
    assume(round(warmup * steps) < steps)
    for schedule in (Linear(warmup), Cosine(warmup)):
        factors = [schedule.factor_at(step, steps) for step in range(steps + 1)]
        peak = factors.index(max(factors))
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)
        assert max(factors) == 1
        assert factors[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", [Linear(0.25), Cosine(2, 0.1), Constant(3)])
def test_scheduler_sets_the_rates_and_resumes(schedule: Schedule):
    def start():
        weight = nn.Parameter(torch.zeros(1))
        optimizer = RowAdamW([{"params": [weight], "lr": 0.5}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=0.25)
        return optimizer, schedule(optimizer, 8)

    def rates(optimizer, scheduler, steps):
        found = []
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return found

    whole = rates(*start(), 8)
    assert whole == [pytest.approx([0.5 * f, 0.25 * f]) for f in (schedule.factor_at(step, 8) for step in range(8))]
    optimizer, scheduler = start()
    first = rates(optimizer, scheduler, 3)
    states = saved_and_loaded([optimizer.state_dict(), scheduler.state_dict()])
    optimizer, scheduler = start()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert first + rates(optimizer, scheduler, 5) == whole
    pickle.loads(pickle.dumps(scheduler))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(-0.1), "warmup .* got -0.1"),
        (lambda: Constant(1.5), "warmup .* got 1.5"),
        (lambda: Cosine(math.nan), "warmup .* got nan"),
        (lambda: Cosine(math.inf), "warmup .* got inf"),
        (lambda: Linear(final=1.1), "final .* got 1.1"),
        (lambda: Linear()(RowAdamW([nn.Parameter(torch.zeros(1))]), 0), "at least 1, got 0"),
        (lambda: Linear()(RowAdamW([nn.Parameter(torch.zeros(1))]), math.inf), "at least 1, got inf"),
    ],
)
def test_schedules_refuse_wrong_numbers(make, message):
    with pytest.raises(UserError, match=message):
        make()
