"""How small or fast a pruned model shall be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llm_arch.types import UserError

_TIMES = re.compile(r"(\d+(?:\.\d+)?)x(?: (macs))?")


@dataclass(frozen=True)
class Target:
    """What shall be saved, and how much of it.

    Attributes:
        unit: `latency`, seconds from text to prediction on this machine; or `macs`, multiply-accumulates of the layers.
        times: how many times less than before; None where `seconds` is given.
        seconds: a row from text to prediction; None where `times` is given.
    """

    unit: Literal["latency", "macs"]
    times: float | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, target: str | None, target_ms: float | None) -> Target | None:
        """From what users write; None where both are None.

        Args:
            target: such as `4x` (faster from text to prediction) or `2x macs`; above 1.
            target_ms: milliseconds a row.

        Raises:
            UserError: it can't be read or reached by making a model smaller, or both are given.
        """
        if target is not None and target_ms is not None:
            raise UserError("give target or target_ms, not both")
        if target_ms is not None:
            if not target_ms > 0:
                raise UserError(f"target_ms must be above 0, got {target_ms}")
            return cls("latency", seconds=target_ms / 1000)
        if target is None:
            return None
        found = _TIMES.fullmatch(target)
        if not found or not float(found[1]) > 1:
            raise UserError(f"target must be such as 4x or '2x macs', with a number above 1, got {target!r}")
        return cls("macs" if found[2] else "latency", times=float(found[1]))

    def budget(self, dense: float) -> float:
        """What the model may cost, where it cost `dense` before.

        Raises:
            UserError: it costs no more than that already.
        """
        budget = dense / self.times if self.times is not None else self.seconds
        assert budget is not None
        if budget >= dense:
            raise UserError(
                f"target_ms is {1000 * budget:.3g}, and the model takes {1000 * dense:.3g} ms a row already"
            )
        return budget

    def __str__(self) -> str:
        """As users write it."""
        if self.times is None:
            assert self.seconds is not None
            return f"{1000 * self.seconds:g} ms"
        return f"{self.times:g}x" + (" macs" if self.unit == "macs" else "")
