"""What a run of pretraining is, on either side, and the shapes that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Turc et al. 2019, Well-Read Students Learn Better: "mini" has 4 layers of 256.
BERT_MINI: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
}


def gpt(vocabulary: int, context: int, *, layers: int = 4, width: int = 256, heads: int = 4) -> dict[str, Any]:
    """A GPT-2-shaped configuration without dropout, whose activation is computed by one kernel.

    `gelu_pytorch_tanh` gives the numbers of GPT-2's `gelu_new`, which takes eight passes over memory instead of one.

    Args:
        vocabulary: rows of the embedding table, which is the output's too.
        context: positions.
        layers: transformer layers.
        width: hidden size.
        heads: attention heads.
    """
    return {
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": context,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


@dataclass(frozen=True)
class Recipe:
    """How both sides train: AdamW with betas 0.9 and 0.999, gradients clipped to norm 1, linear warm-up and decay.

    Args:
        tokens: tokens of a batch, special tokens included.
        length: longest sequence in tokens, special tokens included.
        learning_rate: the peak.
        warmup: the share of the steps in which the rate rises.
        weight_decay: of weight matrices.
        steps: optimizer steps; None for one pass over the data.
        seed: of weights, order, masks and dropout.
        bf16: bfloat16 autocast.
    """

    tokens: int = 4096
    length: int = 128
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    steps: int | None = None
    seed: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class Run:
    """What one run took and reached.

    Args:
        cpu_seconds: CPU seconds of the process in the training loop, its batches included.
        seconds: wall-clock seconds of the same.
        tokens: tokens trained on, neither padding nor special tokens.
        losses: the mean loss of each step.
        predicted: the tokens that each of these is a mean over.
        held_out: the loss on held-out documents, or None when it was not measured.
        peak_mib: the peak memory, or None when it was not measured.
        notes: further numbers, by name.
    """

    cpu_seconds: float
    seconds: float
    tokens: int
    losses: Sequence[float]
    predicted: Sequence[int]
    held_out: float | None = None
    peak_mib: float | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens per CPU second."""
        return self.tokens / self.cpu_seconds

    def last(self, share: float = 0.1) -> float:
        """The mean loss over the last steps, which together hold at least this share of all predicted tokens."""
        total = count = 0.0
        for loss, predicted in zip(reversed(self.losses), reversed(self.predicted), strict=True):
            total, count = total + loss * predicted, count + predicted
            if count >= share * sum(self.predicted):
                break
        return total / count

    def summary(self) -> dict[str, Any]:
        """What is written into the results: everything but the curve step by step, which is thinned to 50 points."""
        every = max(1, len(self.losses) // 50)
        last = self.last() if self.losses else None
        return {**vars(self), "last": last, "losses": self.losses[::every], "predicted": sum(self.predicted)}
