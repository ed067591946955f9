"""Tasks beyond one label a text, each in a file of its own: `understanding_PART.py`.

    python -m benchmarks.understanding relation --data DIR --seeds 0 1 2

What follows the part is for it: `python -m benchmarks.understanding relation --help`.
"""

from __future__ import annotations

from benchmarks.parts import run_part

if __name__ == "__main__":
    run_part("understanding", __doc__)
