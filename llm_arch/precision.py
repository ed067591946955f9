"""The precision of a run when the user sets none: the fastest that trains well on the device at hand."""

from __future__ import annotations

import torch

from llm_arch.types import UserError


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; emulated it is several times slower than fp32."""
    # Private names of torch, guarded: without them fp32 is the safe answer.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def choose_precision(accelerator: str) -> tuple[str, str]:
    """Lightning's precision for an accelerator, and why in half a sentence.

    Args:
        accelerator: cpu, cuda, or another of Lightning's names.
    """
    if accelerator == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU has bf16"
        return "16-mixed", "the GPU has no bf16"
    if accelerator == "cpu":
        if cpu_has_bf16():
            return "bf16-mixed", "the CPU has bf16"
        return "32-true", "the CPU has no native bf16"
    return "32-true", f"the safe choice on {accelerator}"


def check_precision(precision: str | int) -> None:
    """Refuse weights kept in half precision, which `Batch` and the optimizer are not made for.

    Raises:
        UserError: naming the precision that does nearly the same.
    """
    kind, _, how = str(precision).partition("-")
    if how == "true" and kind in ("16", "bf16"):
        raise UserError(
            f"trainer.precision {precision} would round the weights themselves at every step; "
            f"take {kind}-mixed, which computes in {kind} and keeps them in 32 bits"
        )


def use_fast_fp32() -> None:
    """Let fp32 products go through oneDNN: faster, and exact to fp32 where the CPU has no bf16."""
    if not cpu_has_bf16():
        torch.set_float32_matmul_precision("medium")
