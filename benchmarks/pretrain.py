"""Pretraining beside its peers, each part in a file of its own: `pretrain_PART.py`.

    python -m benchmarks.pretrain mlm            masked language modelling against the Trainer's two recipes
    python -m benchmarks.pretrain clm speed      causal language modelling against the Trainer and a bare loop
    python -m benchmarks.pretrain clm memory     peak memory of a training step
    python -m benchmarks.pretrain muon           Muon against AdamW, to the same loss
    python -m benchmarks.pretrain shakespeare    characters of Shakespeare in nanoGPT's budget, and in 30 minutes
    python -m benchmarks.pretrain transfer       pretrained, then fine-tuned, against random weights
    python -m benchmarks.pretrain gpu            tokens/s and share of the GPU's speed
    python -m benchmarks.pretrain profile        where the time of a step goes on a GPU
    python -m benchmarks.pretrain attention      our attention kernel beside others

What follows the part is for it: `python -m benchmarks.pretrain mlm --help`.
"""

from __future__ import annotations

from benchmarks.parts import run_part

if __name__ == "__main__":
    run_part("pretrain", __doc__)
