"""Factors on attention heads, neurons and layers: soft pruning, which a model takes back.

Legend: L layers, H_l attention units and N_l neurons of layer l, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llm_arch.compression.anatomy import LayerParts, anatomy
from llm_arch.compression.structure import Structure
from llm_arch.types import UserError


class GateList(nn.Module):
    """A list of float32 buffers, one a layer, all ones at first.

    Args:
        sizes: the size of each.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.count = len(sizes)
        for layer, size in enumerate(sizes):
            self.register_buffer(str(layer), torch.ones(size))

    def __len__(self) -> int:
        """L."""
        return self.count

    def __getitem__(self, layer: int) -> Tensor:
        """The factors of a layer; below 0 counted from the top."""
        if not -self.count <= layer < self.count:
            raise IndexError(layer)
        values = getattr(self, str(layer % self.count))
        assert isinstance(values, Tensor)
        return values

    def __setitem__(self, layer: int, values: Tensor) -> None:
        """Write these factors into the buffer."""
        with torch.no_grad():
            self[layer].copy_(values)

    def __iter__(self) -> Iterator[Tensor]:
        """The factors of each layer, lowest first."""
        return (self[layer] for layer in range(self.count))


class Gates(nn.Module):
    """A factor for each attention unit, neuron and layer of a model; all ones at first.

    A head's factor multiplies what it hands to the output projection, a neuron's likewise; a layer with the factor g
    gives g · output + (1 - g) · input. Factors of exactly 0 and 1 give the states that physical pruning gives: a
    layer whose heads and neurons are all at 0 counts as one with the factor 0.

    Args:
        model: as `anatomy` takes it.

    Attributes:
        heads: factors (H_l,) of each layer, by index; `gates.heads[2] = values` writes them.
        neurons: factors (N_l,), likewise.
        layers: (L,).
    """

    layers: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = anatomy(model)
        self.heads = GateList([part.heads for part in parts])
        self.neurons = GateList([part.neurons for part in parts])
        self.register_buffer("layers", torch.ones(len(parts)))
        self._given: dict[str, Sequence[Tensor] | Tensor | None] = {}
        self._handles: list[RemovableHandle] = []

    def set_values(
        self,
        *,
        heads: Sequence[Tensor] | None = None,
        neurons: Sequence[Tensor] | None = None,
        layers: Tensor | None = None,
    ) -> None:
        """Take these factors, which may have gradients, in place of the buffers, until called again.

        Args:
            heads: (H_l,) for each layer; None for the buffers.
            neurons: (N_l,) for each layer, likewise.
            layers: (L,), likewise.

        Raises:
            UserError: shapes are others.
        """
        for name, given, own in (("heads", heads, self.heads), ("neurons", neurons, self.neurons)):
            if given is not None and [tuple(g.shape) for g in given] != [tuple(o.shape) for o in own]:
                raise UserError(
                    f"gates of {name} need {', '.join(str(len(o)) for o in own)} factors by layer, "
                    f"got {', '.join(str(tuple(g.shape)) for g in given)}"
                )
        if layers is not None and layers.shape != self.layers.shape:
            raise UserError(f"gates of layers need {len(self.layers)} factors, got {tuple(layers.shape)}")
        self._given = {"heads": heads, "neurons": neurons, "layers": layers}

    def values(self, name: str) -> Sequence[Tensor] | Tensor:
        """The factors in use: those of `set_values`, or the buffers.

        Args:
            name: `heads`, `neurons` or `layers`.
        """
        given = self._given.get(name)
        found: Sequence[Tensor] | Tensor = getattr(self, name) if given is None else given
        return found

    @torch.no_grad()
    def close(self, keep: Structure) -> None:
        """Write zeros and ones into the buffers, so that what is left open is this.

        Args:
            keep: what stays open of the gated model.
        """
        for gates, kept in ((self.heads, keep.heads), (self.neurons, keep.neurons)):
            for gate in gates:
                gate.zero_()
            for layer, units in zip(keep.layers, kept, strict=True):
                gates[layer][list(units)] = 1.0
        self.layers.zero_()
        self.layers[list(keep.layers)] = 1.0

    @property
    def attached(self) -> bool:
        """Whether a model is gated."""
        return bool(self._handles)

    def attach(self, model: nn.Module) -> None:
        """Gate the model's forward passes.

        Raises:
            UserError: its shape is another than that of the model the gates were made for.
        """
        self.detach()
        parts = anatomy(model)
        found = ([part.heads for part in parts], [part.neurons for part in parts])
        if found != ([len(gate) for gate in self.heads], [len(gate) for gate in self.neurons]):
            raise UserError("the gates were made for a model of another shape; make new ones after pruning")
        for layer, part in enumerate(parts):
            if part.heads:
                self._handles.append(part.attention_out.register_forward_pre_hook(self._on_heads(layer, part)))
            if part.neurons:
                self._handles.append(part.ffn_out.register_forward_pre_hook(self._on_neurons(layer)))
            # Before the hooks by which transformers collects the states of all layers.
            self._handles.append(
                part.layer.register_forward_hook(self._on_layer(layer), with_kwargs=True, prepend=True)
            )

    def detach(self) -> None:
        """Let the model run as without gates."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def structure(self, of: Structure) -> Structure:
        """What the zeros leave.

        Args:
            of: the structure of the gated model: `Structure.whole(model)` for what to give to `prune`, or what it is
                of a larger one.

        Raises:
            UserError: nothing is left.
        """
        kept = [layer for layer, gate in enumerate(self.values("layers")) if gate != 0]
        heads, neurons = (
            tuple(tuple(self.values(name)[layer].nonzero()[:, 0].tolist()) for layer in kept)
            for name in ("heads", "neurons")
        )
        return of.then(Structure(tuple(kept), heads, neurons, of.sizes))

    def _on_heads(self, layer: int, part: LayerParts) -> Any:
        def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            gate = self.values("heads")[layer].repeat_interleave(part.head_columns)
            return args[0] * gate.to(args[0].dtype), *args[1:]

        return multiply

    def _on_neurons(self, layer: int) -> Any:
        def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return args[0] * self.values("neurons")[layer].to(args[0].dtype), *args[1:]

        return multiply

    def _on_layer(self, layer: int) -> Any:
        def mix(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            # Without heads and neurons only biases would be left: pruning takes such a layer away.
            alive = (self.values("heads")[layer] != 0).any() | (self.values("neurons")[layer] != 0).any()
            gate = (self.values("layers")[layer] * alive).to(after.dtype)
            mixed = gate * after + (1 - gate) * before
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return mix
