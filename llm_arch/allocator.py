"""Memory that a process has freed stays with it, instead of going back to the system after every training step."""

from __future__ import annotations

import ctypes
import os
import platform

# Names of glibc's malloc.h. Larger blocks than the first are mapped one by one; 32 MiB is the most it takes.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Let glibc's allocator reuse what it has: fetching gradients' pages anew each step is a tenth of a small model's.

    The process holds on to its peak memory, which it needs again a step later. Settings of the user's own
    (`MALLOC_…_` in the environment) and other allocators are left alone.

    Returns:
        Whether the settings were taken.
    """
    given = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("LD_PRELOAD", "")
    if given or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 1024 * _MIB, _TOP_PAD: 64 * _MIB}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
