"""Word embeddings that are moved a little, for whatever is run meanwhile.

Legend: T tokens, V different ones of a batch, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llm_arch.interpret.function import RowFunction


@contextmanager
def moved(function: RowFunction, radius: float, seed: int) -> Iterator[None]:
    """Within the block each token of the function's rows has another embedding, the same wherever it stands.

    Tokens that no row has, such as a mask that words are compared with, keep theirs.

    Args:
        function: the model, with its rows.
        radius: how far each number moves at most, as a share of the standard deviation of the embeddings.
        seed: where to.
    """
    before_TE = function.embeddings()
    ids_V = function.rows.read.input_ids.unique()
    generator = torch.Generator().manual_seed(seed)
    step_VE = (2 * torch.rand(len(ids_V), before_TE.shape[1], generator=generator) - 1) * radius
    step_VE = step_VE.to(before_TE) * before_TE.std()

    def move(module: Any, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        place = torch.searchsorted(ids_V, inputs[0]).clamp(max=len(ids_V) - 1)
        known = (ids_V[place] == inputs[0])[..., None]
        return embedded + step_VE[place].to(embedded.dtype) * known

    hook = function.table.register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()
