"""A model as a function of the tokens of rows, or of their embeddings, with one number a row.

Legend: T tokens of the batch, R rows, N rows that are run, K tokens of these, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor, nn

from llm_arch.interpret.rows import Rows, Taken
from llm_arch.types import Backbone, Batch, Head, Target


class RowFunction:
    """The number that each row's target names.

    Args:
        backbone: in eval mode.
        head: in eval mode.
        batch: the rows, flat.
        targets: one a row.
        tokens: tokens a run at most.
    """

    def __init__(
        self, backbone: Backbone, head: Head, batch: Batch, targets: Sequence[Target], tokens: int = 2048
    ) -> None:
        self.backbone, self.head, self.targets, self.tokens = backbone, head, targets, tokens
        self.rows = Rows(batch)
        self.number = head.explained

    @property
    def batch(self) -> Batch:
        """The rows."""
        return self.rows.batch

    @property
    def table(self) -> nn.Embedding:
        """The embeddings of tokens that are read."""
        return self.backbone.source_embeddings

    def embeddings(self) -> Tensor:
        """(T, E): the word embeddings of the tokens that are explained."""
        with torch.no_grad():
            embedded: Tensor = self.table(self.rows.read.input_ids)
        return embedded

    def run(self, rows: Sequence[int], batch: Batch, inputs_embeds: Tensor | None = None) -> Tensor:
        """(N,) numbers of rows as they stand in a batch.

        Args:
            rows: which rows of this function's batch they are, for their targets.
            batch: the N rows.
            inputs_embeds: (K, E) word embeddings in place of looking them up.
        """
        name = "inputs_embeds" if batch.source is None else "source_embeds"
        hidden = self.backbone(batch) if inputs_embeds is None else self.backbone(batch, **{name: inputs_embeds})
        return self.number(self.head(hidden, batch), batch, [self.targets[row] for row in rows])

    def in_probability(self) -> RowFunction:
        """The same model on the same rows, with how probable each target is as its number."""
        other = copy(self)
        other.number = self.head.probability
        return other

    def gradients(self, rows: Sequence[int], taken: Taken, embeds_KE: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) numbers of rows, and (K, E) their gradients with respect to the word embeddings.

        Args:
            rows: which rows, N of them.
            taken: `self.rows.take(rows)`.
            embeds_KE: the word embeddings.
        """
        embeds_KE = embeds_KE.detach().requires_grad_()
        # cuDNN's recurrent layers have no backward pass in eval mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            value_N = self.run(rows, taken.batch, embeds_KE)
            (gradient_KE,) = torch.autograd.grad(value_N.sum(), embeds_KE)
        return value_N.detach(), gradient_KE


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within the block no parameter wants a gradient, so that nothing is kept for one."""
    before = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


def per_row(values_K: Tensor, row_K: Tensor, rows: int) -> Tensor:
    """(N,) sums of what belongs to each row."""
    return values_K.new_zeros(rows).index_add(0, row_K, values_K)
