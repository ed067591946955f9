"""How much a model loses with each head, neuron or layer: what all ways of estimating it share.

Legend: T tokens, B sequences, H heads of a layer, N neurons of a layer, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_arch.compression.anatomy import LayerParts
from llm_arch.types import Batch

LossOf = Callable[[Batch], Tensor]  # the sum of a batch's losses, with gradients of the states


@dataclass(frozen=True)
class Scores:
    """Larger is more important; comparable across layers within heads, within neurons, and within layers.

    Attributes:
        heads: (H,) of each layer.
        neurons: (N,) of each layer.
        layers: (L,) of each layer as a whole.
    """

    heads: list[Tensor]
    neurons: list[Tensor]
    layers: Tensor


class Importance(ABC):
    """A way to estimate importance; `compression.fisher.Fisher` and its like are what users write as `class_path`."""

    @abstractmethod
    def __call__(self, parts: Sequence[LayerParts], loss_of: LossOf, batches: Iterable[Batch]) -> Scores:
        """Scores of every head, neuron and layer.

        Args:
            parts: the layers of the model.
            loss_of: runs the model that they belong to.
            batches: some labelled rows, of which methods that need no data look at none.
        """


class Derivatives(Importance):
    """Importance as the mean over sequences of some function of the derivative by a unit's gate."""

    @abstractmethod
    def of(self, derivative: Tensor) -> Tensor:
        """The function, elementwise."""

    def __call__(self, parts: Sequence[LayerParts], loss_of: LossOf, batches: Iterable[Batch]) -> Scores:
        """Scores, in units of the loss of a sequence."""
        heads = [torch.zeros(part.heads) for part in parts]
        neurons = [torch.zeros(part.neurons) for part in parts]
        layers = torch.zeros(len(parts))
        count = 0
        for batch in batches:
            with products(parts, batch) as found:
                loss_of(batch).backward()
            for total, new in zip(
                [*heads, *neurons, layers], [*found.heads, *found.neurons, found.layers], strict=True
            ):
                total += self.of(new).sum(0).cpu()
            count += batch.size
        for total in (*heads, *neurons, layers):
            total /= max(count, 1)
        return Scores(heads, neurons, layers)


class Products:
    """For each sequence of a batch, gradient × activation: the derivative of its loss by a gate before each unit.

    Attributes:
        heads: (B, H) of each layer.
        neurons: (B, N) of each layer.
        layers: (B, L).
    """

    def __init__(self, count: int) -> None:
        self.heads: list[Tensor] = [torch.empty(0)] * count
        self.neurons: list[Tensor] = [torch.empty(0)] * count
        self._layers: list[Tensor] = [torch.empty(0)] * count

    @property
    def layers(self) -> Tensor:
        """(B, L): of a gate between what a layer was given and what it makes of it."""
        return torch.stack(self._layers, 1)


@contextmanager
def products(parts: Sequence[LayerParts], batch: Batch) -> Iterator[Products]:
    """Collect the products of one batch, whose loss goes forward and backward within.

    Where no gradient arrives the product is zero. Sums are over the tokens of a sequence, so that micro-batches and
    padding inside the model do not change them.
    """
    found = Products(len(parts))
    handles = []

    def by_sequence(product: Tensor, units: int) -> Tensor:
        """(1, T, C) or (B, L, C) → (B, units): over the tokens of a sequence, and over the C / units of a unit."""
        of_units = product.float().unflatten(-1, (units, -1)).sum(-1)
        if len(of_units) == 1 and of_units.shape[1] == len(batch.segments):
            return of_units.new_zeros(batch.size, units).index_add(0, batch.segments, of_units[0])
        return of_units.sum(1)

    def watch(value: Tensor, keep: Callable[[Tensor], None]) -> None:
        if value.requires_grad:
            value.register_hook(keep)

    def enter(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Where all weights are frozen, which makes the backward pass half as long, gradients start here."""
        states, *rest = given
        return None if states.requires_grad else (states.detach().requires_grad_(), *rest)

    def before(module: nn.Module, given: tuple[Any, ...], store: list[Tensor], place: int, units: int) -> None:
        states = given[0]
        store[place] = states.new_zeros(batch.size, units, dtype=torch.float32)

        def keep(gradient: Tensor) -> None:
            store[place] = by_sequence(states.detach() * gradient, units)

        watch(states, keep)

    def after(module: nn.Module, given: tuple[Any, ...], made: Any, place: int) -> None:
        out = made[0] if isinstance(made, tuple) else made
        change = (out - given[0]).detach()
        found._layers[place] = out.new_zeros(batch.size, dtype=torch.float32)

        def keep(gradient: Tensor) -> None:
            found._layers[place] = by_sequence(change * gradient, 1)[:, 0]

        watch(out, keep)

    if parts:
        handles.append(parts[0].layer.register_forward_pre_hook(enter))
    for place, part in enumerate(parts):
        sublayers = ((part.attention_out, found.heads, part.heads), (part.ffn_out, found.neurons, part.neurons))
        for module, store, units in sublayers:
            store[place] = torch.zeros(batch.size, units)
            if units:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda m, given, s=store, p=place, u=units: before(m, given, s, p, u)
                    )
                )
        handles.append(part.layer.register_forward_hook(lambda m, given, made, p=place: after(m, given, made, p)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
