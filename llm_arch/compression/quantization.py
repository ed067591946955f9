"""A trained model in int8 without its export: its logits, and how far they are from those of the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from llm_arch.compression.fake_quantization import FakeQuantization
from llm_arch.types import Backbone, Batch, Head, UserError


@contextmanager
def fake_quantized(backbone: Backbone, head: Head, *, embeddings: bool = True) -> Iterator[dict[str, int]]:
    """Within it a model computes as its export in int8 will, without being trained for it.

    Args:
        backbone: in any mode; to predict, in eval mode.
        head: likewise.
        embeddings: whether embeddings are int8 too.

    Raises:
        UserError: the model can't run in int8.
    """
    twin = FakeQuantization(embeddings=embeddings)
    found = twin.attach(backbone, head)
    try:
        yield found
    finally:
        twin.detach()


@dataclass(frozen=True)
class Int8Difference:
    """How far a model's logits in int8 are from its own.

    Attributes:
        largest: greatest absolute difference of a logit.
        mean: mean absolute difference.
        agreement: share of rows of logits in which the greatest is the same, in [0, 1]; None where a row has one.
    """

    largest: float
    mean: float
    agreement: float | None


@torch.no_grad()
def int8_difference(
    backbone: Backbone, head: Head, batches: Sequence[Batch], *, embeddings: bool = True
) -> Int8Difference:
    """What rounding does to a model's logits.

    Args:
        backbone: in eval mode.
        head: in eval mode.
        batches: at least one, where the model is.
        embeddings: whether embeddings are int8 too.

    Raises:
        UserError: the model can't run in int8, or there are no rows.
    """
    if not batches:
        raise UserError("to compare a model with itself in int8 takes rows, and there are none")
    plain = [head(backbone(batch), batch).float() for batch in batches]
    with fake_quantized(backbone, head, embeddings=embeddings):
        rounded = [head(backbone(batch), batch).float() for batch in batches]
    apart = torch.cat([(a - b).abs().flatten() for a, b in zip(plain, rounded, strict=True)])
    apart = apart[apart.isfinite()]
    same = None
    if plain[0].dim() == 2 and plain[0].shape[1] > 1:
        pairs = zip(plain, rounded, strict=True)
        same = float(torch.cat([a.argmax(1) == b.argmax(1) for a, b in pairs]).float().mean())
    return Int8Difference(float(apart.max()), float(apart.mean()), same)
