"""Explanations: how fast, how complete, how faithful and how plausible they are, each part in a file of its own.

    python -m benchmarks.interpret speed --data DIR          integrated gradients beside captum's
    python -m benchmarks.interpret faithfulness --data DIR   every method on SST-2, beside random scores
    python -m benchmarks.interpret plausibility --data DIR   every method beside what people marked
    python -m benchmarks.interpret compressed --data DIR     a dense model beside what it was compressed to

What follows the part is for it: `python -m benchmarks.interpret speed --help`. Models are trained on the way, and kept
with `--models DIR`.
"""

from __future__ import annotations

from benchmarks.parts import run_part

if __name__ == "__main__":
    run_part("interpret", __doc__)
