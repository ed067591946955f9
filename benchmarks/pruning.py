"""Structured pruning of a fine-tuned MiniLM, each part in a file of its own: `pruning_PART.py`.

    python -m benchmarks.pruning structure --data DIR           2x and 4x faster, with fine-tuning: quality and time
    python -m benchmarks.pruning retraining_free --data DIR     half of the multiply-accumulates, without training
    python -m benchmarks.pruning promise --data DIR             promised and measured speed at five targets
    python -m benchmarks.pruning base --data DIR                what `structure` keeps, in the shape of BERT-base
    python -m benchmarks.pruning profile --data DIR             where the time of a prediction goes
    python -m benchmarks.pruning fillers --data DIR             training steps with batches of a round size, and without

`--models FOLDER` keeps the models, so that parts share them and a run that was cut off goes on. What follows the part
is for it: `python -m benchmarks.pruning structure --help`.
"""

from __future__ import annotations

from benchmarks.parts import run_part

if __name__ == "__main__":
    run_part("pruning", __doc__)
