"""Which kernel of a GPU is asked, as far as a machine without one can tell; in test_cuda.py is what they compute."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_arch.backbones import varlen
from llm_arch.backbones.varlen import Kernels, kernels_of, varlen_serves

GPU = torch.device("cuda", 5)


@pytest.mark.parametrize(
    ("flash", "dtype", "size", "serves"),
    [
        (True, torch.bfloat16, 64, True),
        (True, torch.float16, 256, True),
        (True, torch.float16, 257, False),
        (True, torch.float32, 64, False),
        (False, torch.bfloat16, 64, False),
    ],
)
def test_half_precision_needs_no_padding_where_there_is_a_flash_kernel(
    flash: bool, dtype: torch.dtype, size: int, serves: bool
) -> None:
    packed: Any = SimpleNamespace(kernels=Kernels(flash, ()))
    assert varlen_serves(torch.empty(1, 2, 3, size, dtype=dtype), packed) is serves


def test_a_cpu_has_neither() -> None:
    assert kernels_of(torch.device("cpu")) == (False, 0)


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to have a GPU of the capability that is set, and Triton."""
    kernels_of.cache_clear()
    found = {"is": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["is"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(varlen, "find_spec", lambda name: object())
    yield found
    kernels_of.cache_clear()


def test_an_old_gpu_has_neither(capability: Any) -> None:
    capability["is"] = (7, 5)
    assert kernels_of(GPU) == (False, 0)


def test_without_triton_there_is_no_kernel_of_our_own(capability: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "find_spec", lambda name: None)
    assert kernels_of(GPU) == (True, 0)


def test_where_triton_does_not_run_a_warning_says_so_once(capability: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        @property
        def active(self) -> Any:
            raise RuntimeError("Failed to find C compiler")

    broken = SimpleNamespace(runtime=SimpleNamespace(driver=Driver()))
    monkeypatch.setitem(sys.modules, "triton", broken)
    monkeypatch.setitem(sys.modules, "llm_arch.backbones.short_attention", SimpleNamespace())
    with pytest.warns(UserWarning, match="go to the flash kernel, .* Failed to find C compiler"):
        assert kernels_of(GPU) == (True, 0)
    assert kernels_of(GPU) == (True, 0)


@pytest.mark.parametrize(("memory", "largest"), [(101376, 64), (232448, 128), (1024, 0)])
def test_head_sizes_are_those_that_fit_into_shared_memory(
    capability: Any, monkeypatch: pytest.MonkeyPatch, memory: int, largest: int
) -> None:
    working = SimpleNamespace(runtime=SimpleNamespace(driver=SimpleNamespace(active=SimpleNamespace(utils=1))))
    monkeypatch.setitem(sys.modules, "triton", working)
    monkeypatch.setitem(sys.modules, "llm_arch.backbones.short_attention", SimpleNamespace())
    properties = SimpleNamespace(shared_memory_per_block_optin=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert kernels_of(GPU) == (True, largest)


def test_which_head_sizes_our_kernel_does() -> None:
    sizes = [size for size in range(1, 300) if Kernels(True, 64).own_does(size)]
    assert sizes == [16, 32, 64]
    assert not Kernels(True, 0).own_does(16)
