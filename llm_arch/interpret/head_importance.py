"""Which attention heads count: derivatives by a factor on each (Michel et al. 2019, arXiv 1905.10650).

A head whose factor goes from 1 to 0 changes the number by its derivative, to first order. Heads are query heads, also
where some share keys and values; pruning takes those out together, and their derivatives add up.

Legend: N rows, H heads of a layer, B sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from llm_arch.compression.anatomy import LayerParts, anatomy
from llm_arch.compression.importance import products
from llm_arch.interpret.function import RowFunction
from llm_arch.interpret.inside import Inside, Numbers
from llm_arch.types import Backbone, UserError


def knows_heads(backbone: Backbone) -> bool:
    """Whether it is known where the heads of a transformer lie."""
    try:
        anatomy(backbone.model)  # type: ignore[arg-type]
    except UserError:
        return False
    return True


def head_derivatives(function: RowFunction) -> list[tuple[Numbers, ...]]:
    """For each row, for each layer, lowest first, (H,) float32: the derivative of its number by a factor on each head.

    One forward and one backward pass.

    Args:
        function: the rows and their numbers; the parameters of its model are frozen.

    Raises:
        UserError: it is not known where the heads of this model lie.
    """
    parts = [_by_query_heads(part) for part in anatomy(function.backbone.model)]  # type: ignore[arg-type]
    everyone = list(range(len(function.targets)))
    found: list[tuple[Numbers, ...]] = []
    for part in function.rows.chunks(everyone, function.tokens):
        batch, rows = function.rows.take(everyone[part]).batch, everyone[part]
        with torch.enable_grad(), products(parts, batch) as gradients:
            function.run(rows, batch).sum().backward()
        of_layers = []
        for derivative_BH in gradients.heads:  # a row's sequences share the factor
            sum_NH = derivative_BH.new_zeros(len(rows), derivative_BH.shape[1])
            of_layers.append(sum_NH.index_add(0, batch.row_of_sequence, derivative_BH).cpu().numpy())
        found += [tuple(layer[row] for layer in of_layers) for row in range(len(rows))]
    return found


def _by_query_heads(part: LayerParts) -> LayerParts:
    """With each query head as a unit of its own."""
    if not part.heads:
        return part
    size = getattr(part.attention, "attention_head_size", None) or part.attention.head_dim
    assert isinstance(size, int)
    return replace(part, heads=part.heads * part.head_columns // size, head_columns=size)


def mean_importance(rows: Iterable[Inside], *, by_layer: bool = False) -> list[Numbers]:
    """For each layer (H,) float32: the mean over rows of how much each head counts.

    Args:
        rows: one at least; a stream is read once and not kept.
        by_layer: divide each layer's by their l2 norm, as Michel et al. do: gradients of lower layers are larger.

    Raises:
        UserError: there are no rows, or importance was not asked for.
    """
    total, count = None, 0
    for row in rows:
        if row.importance is None:
            raise UserError(f"row {row.index + 1} has no importance of heads; ask for it with importance=True")
        layers = [layer.astype(np.float64) for layer in row.importance]
        total = layers if total is None else [a + b for a, b in zip(total, layers, strict=True)]
        count += 1
    if total is None:
        raise UserError("there are no rows to take the mean of; give one at least")
    means = [layer / count for layer in total]
    if by_layer:
        means = [layer / (np.linalg.norm(layer) or 1.0) for layer in means]
    return [layer.astype(np.float32) for layer in means]
