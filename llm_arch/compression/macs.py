"""Multiply-accumulates of a transformer's layers: what its matrix products need, whatever the machine.

Embeddings, norms, biases and softmax are not counted, as is usual.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.prices import Prices, Sizes


def macs_per_token(model: nn.Module, length: float) -> float:
    """Multiply-accumulates a token of a model's layers, dense or pruned.

    A weight costs one. Attention costs a token 2 · S for each column of its heads, to compare it with S tokens and to
    mix their values, with causal attention too: kernels compute the whole square, or could.

    Args:
        model: a bare transformers model, as `anatomy` takes it.
        length: S, tokens of a sequence.

    Raises:
        UserError: the model is of a kind that `anatomy` does not know.
    """
    return sum(_weights(part.layer) + 2 * length * part.heads * part.head_columns for part in anatomy(model))


def macs_of(model: nn.Module, sizes: Sizes, length: float) -> float:
    """What `macs_per_token` would be if the dense model had these heads and neurons.

    Args:
        model: the dense model.
        sizes: heads and neurons of each of its layers; None for a layer that is removed.
        length: tokens of a sequence.
    """
    return macs_prices(model, [length]).total(sizes)


def macs_prices(model: nn.Module, lengths: Sequence[float]) -> Prices:
    """Multiply-accumulates a token of a dense model's parts, for a mean over rows.

    Args:
        model: the dense model, all of whose layers are alike.
        lengths: tokens of each row, or of some that are like all.
    """
    part = anatomy(model)[0]
    in_heads = _weights(part.attention_out, *(one.linear for one in part.attention_in))
    in_neurons = _weights(part.ffn_out, *(one.linear for one in part.ffn_in))
    lengths_R = np.asarray(lengths, dtype=np.float64)
    attended = float((lengths_R**2).sum() / lengths_R.sum())  # tokens that a token sees, over all tokens
    of_heads = in_heads + 2 * attended * part.heads * part.head_columns
    return Prices(
        heads=np.arange(part.heads + 1, dtype=np.float64) * (of_heads / part.heads),
        neurons=np.arange(part.neurons + 1, dtype=np.float64) * (in_neurons / part.neurons),
        layer=0.0,
        outside=0.0,
    )


def _weights(*modules: nn.Module) -> int:
    """The weights of all matrix products in these; transformers' Conv1D is one too."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)
