"""How large the inputs of linear layers are, seen while batches go through a model.

Legend: T tokens of the batch, B sequences, L longest of them, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llm_arch import fillers
from llm_arch.compression.sparsity import SparsityMethod
from llm_arch.types import Batch

_MEMORY = 0.95  # of older steps: weights change, and so do their inputs


class InputNorms:
    """The L2 norm of each input over tokens, of the last steps most.

    Tokens of padding are left out, where the model's layout is the batch's or that of a grid filled from the left.
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}  # sums of squares up to the last `gather`, each (I,)
        self._new: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._batch: Batch | None = None

    def watch(self, layers: Mapping[str, nn.Module]) -> None:
        """Look at the inputs of these layers from now on."""
        self.unwatch()
        for name, layer in layers.items():
            self._new[name] = torch.zeros(())
            self._handles.append(layer.register_forward_pre_hook(lambda _, given, n=name: self._add(n, given[0])))

    def unwatch(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._new, self._batch = [], {}, None

    def see(self, batch: Batch | None) -> None:
        """Be told of the batch that comes next; None for what is not to be looked at, such as validation."""
        self._batch = batch

    @torch.no_grad()
    def _add(self, name: str, states: Tensor) -> None:
        if self._batch is None:
            return
        squares = states.detach().float().square()
        real = _real(states, self._batch)
        if real is not None:
            squares = squares * real[..., None]
        self._new[name] = self._new[name].to(states.device) + squares.flatten(0, -2).sum(0)

    def gather(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take what was seen since the last time into the norms; a layer that saw nothing keeps its own."""
        seen = {name: new for name, new in self._new.items() if new.dim()}
        if not seen:
            return
        totals = over_ranks(torch.cat(list(seen.values()))).split([len(new) for new in seen.values()])
        for name, total in zip(seen, totals, strict=True):
            older = self.squares.get(name)
            self.squares[name] = total.clone() if older is None else _MEMORY * older.to(total.device) + total
            self._new[name] = torch.zeros(())

    def norms(self, name: str, weight_OI: Tensor) -> Tensor:
        """(I,) of a layer; ones where nothing went through it."""
        if name not in self.squares:
            return weight_OI.new_ones(weight_OI.shape[1], dtype=torch.float32)
        return self.squares[name].to(weight_OI.device).sqrt()


class LooksAtInputs(SparsityMethod):
    """A method whose scores take the inputs' norms."""

    def __init__(self) -> None:
        self.inputs = InputNorms()

    def watch(self, layers: Mapping[str, nn.Module]) -> None:
        """Look at the inputs of these layers from now on."""
        self.inputs.watch(layers)

    def see(self, batch: Batch | None) -> None:
        """Be told of the batch that goes through them next."""
        self.inputs.see(batch)

    def gather(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take what was seen since the last time into the norms."""
        self.inputs.gather(over_ranks)

    def unwatch(self) -> None:
        """Look no longer."""
        self.inputs.unwatch()

    def state_dict(self) -> dict[str, Any]:
        """The norms."""
        return {"squares": self.inputs.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.inputs.squares = dict(state["squares"])


def _real(states: Tensor, batch: Batch) -> Tensor | None:
    """Which positions hold a token, of the states' shape without the last dimension; None where all do."""
    shape = states.shape[:-1]
    if shape.numel() == len(batch.segments):
        return None if batch.valid is None else batch.valid.view(shape)
    if fillers.is_of(states, batch.segments):
        real_T: Tensor = torch.arange(shape.numel(), device=states.device) < len(batch.segments)
        return real_T.view(shape)
    if len(shape) == 2 and shape == (batch.size, batch.longest):
        real_BL: Tensor = torch.arange(shape[1], device=states.device) < batch.lengths[:, None]
        return real_BL
    return None
