"""How small or fast a model shall be, as users write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.compression.target import Target
from llm_arch.types import UserError


@given(st.integers(101, 99999), st.sampled_from(["latency", "macs"]))
def test_written_and_read_again(hundredths, unit):
    target = Target(unit, times=hundredths / 100)
    assert Target.parse(str(target), None) == target
    assert target.budget(100.0) == pytest.approx(100 * 100 / hundredths)


@given(st.floats(1e-3, 1e5))
def test_milliseconds(number):
    target = Target.parse(None, number)
    assert target == Target("latency", seconds=number / 1000)
    assert float(str(target).removesuffix(" ms")) == pytest.approx(number, rel=1e-5)
    assert target.budget(number / 1000 * 1.01) == number / 1000


def test_examples():
    assert Target.parse(None, None) is None
    assert Target.parse("4x", None) == Target("latency", times=4.0)
    assert Target.parse("2.5x macs", None) == Target("macs", times=2.5)
    assert str(Target("macs", times=2.0)) == "2x macs"
    assert str(Target("latency", seconds=0.0031)) == "3.1 ms"


@pytest.mark.parametrize("wrong", ["", "4", "x", "1x", "0.5x", "-2x", "4X", "4x ", "2x flops", "nanx", "1e3x", "4,5x"])
def test_what_can_not_be_read(wrong):
    with pytest.raises(UserError, match="such as 4x or '2x macs', with a number above 1, got") as told:
        Target.parse(wrong, None)
    assert repr(wrong) in str(told.value)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_no_time(wrong):
    with pytest.raises(UserError, match="target_ms must be above 0"):
        Target.parse(None, wrong)


def test_both():
    with pytest.raises(UserError, match="not both"):
        Target.parse("4x", 3.0)


@pytest.mark.parametrize("wanted", [2.0, 2.5, float("inf")])
def test_fast_enough_already(wanted):
    target = Target.parse(None, wanted)
    with pytest.raises(UserError, match=r"target_ms is (2|2.5|inf), and the model takes 2 ms a row already"):
        target.budget(0.002)
