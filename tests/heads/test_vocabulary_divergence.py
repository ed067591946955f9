"""The divergence over a vocabulary in chunks: against that of all logits at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import kl_div, linear

from llm_arch.heads.vocabulary_divergence import Parts, vocabulary_divergence


def parts(M: int, V: int, E: int, bias: bool, dtype: torch.dtype = torch.float32) -> Parts:
    made = [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((M, E), (V, E), (V,))]
    return made[0], made[1], made[2] if bias else None


def whole(student: Parts, teacher: Parts, temperature: float) -> Tensor:
    ours, theirs = ((linear(*one) / temperature).log_softmax(1) for one in (student, teacher))
    return kl_div(ours, theirs.detach(), reduction="sum", log_target=True) * temperature**2


@settings(max_examples=25, deadline=None)
@given(
    M=st.integers(0, 9),
    V=st.integers(1, 30),
    at_once=st.integers(1, 99),
    bias=st.booleans(),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_value_and_gradients(M: int, V: int, at_once: int, bias: bool, temperature: float) -> None:
    student, teacher = parts(M, V, 8, bias), parts(M, V, 5, not bias)
    found, expected = (
        vocabulary_divergence(student, teacher, temperature, at_once),
        whole(student, teacher, temperature),
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    leaves = [one for one in student if one is not None]
    pairs = zip(*(torch.autograd.grad(2 * loss, leaves) for loss in (found, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_double_precision_stays_double() -> None:
    student, teacher = (parts(5, 11, size, True, torch.float64) for size in (4, 3))
    found = vocabulary_divergence(student, teacher, 2.0, 22)
    torch.testing.assert_close(found, whole(student, teacher, 2.0), rtol=1e-12, atol=0)


def test_under_autocast_close_to_fp32() -> None:
    student, teacher = parts(40, 60, 16, True), parts(40, 60, 16, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vocabulary_divergence(student, teacher, 2.0, 300)
    assert found.dtype == torch.float32
    expected = whole(student, teacher, 2.0)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    ours, theirs = (torch.autograd.grad(loss, student[1])[0] for loss in (found, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_is_differentiated_once() -> None:
    student, teacher = parts(3, 4, 2, False), parts(3, 4, 2, False)
    loss = vocabulary_divergence(student, teacher, 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        loss.backward()
