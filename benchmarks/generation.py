"""Writing texts, each part in a file of its own: `generation_PART.py`.

    python -m benchmarks.generation translation --data DIR    Multi30k from scratch, beside a stock Seq2SeqTrainer
    python -m benchmarks.generation throughput                tokens/s of batches against row by row
    python -m benchmarks.generation chat --data DIR           SciTLDR and DailyDialog, before and after LoRA
    python -m benchmarks.generation augment --data DIR        8 rows a class of Banking77, with and without augmentation

What follows the part is for it: `python -m benchmarks.generation translation --help`.
"""

from __future__ import annotations

from benchmarks.parts import run_part

if __name__ == "__main__":
    run_part("generation", __doc__)
