"""Pruning, distillation and int8 together, from a fine-tuned MiniLM; each part in a file: `compression_PART.py`.

    python -m benchmarks.compression joint --data DIR       one recipe, exported in int8: quality, speed, size
    python -m benchmarks.compression int8 --data DIR        what int8 loses, and what training for it brings back
    python -m benchmarks.compression students --data DIR    fewer layers, TextCNN and BiLSTM: with a teacher and without

`--models FOLDER` keeps the models, so that parts share them with each other and with `benchmarks.pruning`, and a run
that was cut off goes on. What follows the part is for it: `python -m benchmarks.compression joint --help`.
"""

from __future__ import annotations

from benchmarks.parts import run_part

if __name__ == "__main__":
    run_part("compression", __doc__)
