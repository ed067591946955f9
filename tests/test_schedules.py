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
from llm_arch.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay
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


@given(warmup=shares, decay=st.floats(0, 1), final=st.floats(0, 1), steps=step_counts)
def test_warmup_stable_decay_follows_its_closed_form(warmup, decay, final, steps):
    assume(warmup + decay <= 1 and decay < 1)
    rise, fall = round(warmup * steps), round(decay * steps)
    assume(rise + fall <= steps)
    linear = WarmupStableDecay(warmup, decay, "linear", final)
    root = WarmupStableDecay(warmup, decay, "1-sqrt", final)
    for step in range(steps + 2):
        if step < rise:
            expected = [(step + 1) / rise] * 2
        elif step <= steps - fall or not fall:
            expected = [1.0, 1.0]
        else:  # Hägele et al. 2024, with a floor: f(n) = 1 - √((n - (N - N_decay)) / N_decay)
            x = min((step - (steps - fall)) / fall, 1)
            expected = [final + (1 - final) * (1 - x), final + (1 - final) * (1 - math.sqrt(x))]
        found = [schedule.factor_at(step, steps) for schedule in (linear, root)]
        assert found == pytest.approx(expected, abs=1e-12)
        if step < steps:
            assert all(0 < factor <= 1 for factor in found)


def test_a_longer_run_goes_on_from_the_stable_part():
    schedule = WarmupStableDecay(5, 10)
    short, long = ([schedule.factor_at(step, steps) for step in range(steps)] for steps in (40, 90))
    assert short[:31] == long[:31]
    assert short[30:] == long[80:]
    assert WarmupStableDecay(5, 0.25).factor_at(31, 40) < 1 == WarmupStableDecay(5, 0.25).factor_at(31, 90)


@pytest.mark.parametrize(
    "schedule", [WarmupStableDecay(100, 100), WarmupStableDecay(0.9, 3), WarmupStableDecay(7, 0.9)]
)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_run_too_short_for_rise_and_fall_still_trains(schedule, steps):
    assert all(0 < schedule.factor_at(step, steps) <= 1 for step in range(steps))


def test_without_decay_it_is_constant():
    factors = [(WarmupStableDecay(3, 0).factor_at(step, 9), Constant(3).factor_at(step, 9)) for step in range(10)]
    assert all(a == b for a, b in factors)


@pytest.mark.parametrize("schedule", [Linear(0.25), Cosine(2, 0.1), Constant(3), WarmupStableDecay(2, 3)])
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
        (lambda: WarmupStableDecay(decay=-0.2), "decay .* got -0.2"),
        (lambda: WarmupStableDecay(decay=1.5), "decay .* got 1.5"),
        (lambda: WarmupStableDecay(decay=math.inf), "decay .* got inf"),
        (lambda: WarmupStableDecay(0.6, 0.5), "warmup and decay .* got 0.6 and 0.5"),
        (lambda: WarmupStableDecay(shape="cosine"), "shape must be linear or 1-sqrt, got 'cosine'"),
        (lambda: Linear()(RowAdamW([nn.Parameter(torch.zeros(1))]), 0), "at least 1, got 0"),
        (lambda: Linear()(RowAdamW([nn.Parameter(torch.zeros(1))]), math.inf), "at least 1, got inf"),
    ],
)
def test_schedules_refuse_wrong_numbers(make, message):
    with pytest.raises(UserError, match=message):
        make()
