"""The precision that is chosen when the user sets none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llm_arch import precision
from llm_arch.precision import check_precision, choose_precision, cpu_has_bf16, use_fast_fp32
from llm_arch.trainer import Trainer
from llm_arch.types import UserError


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", ["16", "bf16"])
def test_half_precision_weights_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"take {kind}-mixed"):
        Trainer(precision=f"{kind}-true", logger=False)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", 32, "64-true"])
def test_other_precisions_pass(precision: str | int) -> None:
    check_precision(precision)


@pytest.mark.parametrize(("avx", "amx"), [(False, False), (True, False), (False, True), (True, True)])
def test_either_instruction_set_will_do(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert cpu_has_bf16() is (avx or amx)


def test_a_torch_without_these_questions_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert cpu_has_bf16() is False


@pytest.mark.parametrize(
    ("accelerator", "has", "expected"),
    [
        ("cpu", True, ("bf16-mixed", "the CPU has bf16")),
        ("cpu", False, ("32-true", "the CPU has no native bf16")),
        ("cuda", True, ("bf16-mixed", "the GPU has bf16")),
        ("cuda", False, ("16-mixed", "the GPU has no bf16")),
        ("mps", True, ("32-true", "the safe choice on mps")),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, accelerator: str, has: bool, expected: tuple[str, str]) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has and accelerator == "cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and accelerator == "cuda")
    assert choose_precision(accelerator) == expected


@pytest.mark.parametrize(("has", "expected"), [(True, "highest"), (False, "medium")])
def test_fast_products_only_where_they_stay_exact(monkeypatch: pytest.MonkeyPatch, has: bool, expected: str) -> None:
    # With bf16 in the CPU, "medium" would round the factors to it.
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    use_fast_fp32()
    assert torch.get_float32_matmul_precision() == expected
