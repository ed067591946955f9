"""Benchmarks of several parts: `python -m benchmarks.NAME PART …` runs `benchmarks/NAME_PART.py`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def parts_of(benchmark: str) -> list[str]:
    """The parts there are."""
    prefix = f"{benchmark}_"
    return sorted(path.stem.removeprefix(prefix) for path in Path(__file__).parent.glob(f"{prefix}*.py"))


def run_part(benchmark: str, description: str | None) -> None:
    """Hand the command line over to a part.

    Args:
        benchmark: the name before the underscore.
        description: what to print where the part is missing or unknown.
    """
    part, *arguments = sys.argv[1:] or [""]
    if part not in parts_of(benchmark):
        usage = f"usage: python -m benchmarks.{benchmark} {{{','.join(parts_of(benchmark))}}} …"
        raise SystemExit(f"{usage}\n\n{description}")
    import_module(f"benchmarks.{benchmark}_{part}").main(arguments)
