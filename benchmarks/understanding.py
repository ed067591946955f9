"""Tasks beyond one label a text, each in a file of its own: `understanding_PART.py`.

    python -m benchmarks.understanding relation --data DIR --seeds 0 1 2

What follows the part is for it: `python -m benchmarks.understanding relation --help`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

_PREFIX = "understanding_"


def parts() -> list[str]:
    """The parts there are."""
    return sorted(path.stem.removeprefix(_PREFIX) for path in Path(__file__).parent.glob(f"{_PREFIX}*.py"))


def main() -> None:
    """Hand over to a part."""
    part, *arguments = sys.argv[1:] or [""]
    if part not in parts():
        raise SystemExit(f"usage: python -m benchmarks.understanding {{{','.join(parts())}}} …\n\n{__doc__}")
    import_module(f"benchmarks.{_PREFIX}{part}").main(arguments)


if __name__ == "__main__":
    main()
