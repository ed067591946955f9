"""How much memory a piece of code takes at most (Linux)."""

from __future__ import annotations

import ctypes
import gc
import platform
from pathlib import Path
from types import TracebackType


class PeakMemory:
    """How much resident memory a `with` block took at most beyond what the process held before.

    Attributes:
        mib: MiB between the resident set when the block began and its peak within the block.
    """

    def __init__(self) -> None:
        self.mib = 0.0

    def __enter__(self) -> PeakMemory:
        """Give back what was freed, and forget earlier peaks."""
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to the present
        except OSError as error:
            raise SystemExit("peak memory is measured on Linux only, with a writable /proc/self/clear_refs") from error
        self._before = _resident_mib("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the peak."""
        self.mib = _resident_mib("VmHWM") - self._before


def _resident_mib(field: str) -> float:
    """A size that the kernel tells of this process, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {field}")
