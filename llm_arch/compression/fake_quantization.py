"""A model that computes as if it ran in int8, and can still be trained: its linear layers and embeddings round.

Nothing of the model changes but the `forward` of these modules: parameters, their names and the state dict stay as
they are, in fp32. Which whole numbers run later follows from the weights alone, so an export finds the same.

Legend: B sequences, N positions of a layer's inputs, G groups that share a scale, I inputs, O outputs, V vocabulary,
E embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_arch.compression.int8 import Steps, input_steps, int8_linear, ranges, table_values
from llm_arch.compression.positions import positions_of, without_batch
from llm_arch.compression.quantizable import quantizable
from llm_arch.types import Backbone, Batch, Head, Hidden


class FakeQuantization:
    """Lets a model round as ONNX Runtime's dynamic int8 does (`llm_arch.compression.int8`), while it is attached.

    Linear layers round their weights, and their inputs by a scale for each sequence, as if the sequences of a batch
    were run one at a time; embeddings round by a scale for the table. The head, which is small and last, stays as it
    is, as in exports; one that multiplies with the embeddings takes them rounded. Copies of the model are plain.

    Args:
        embeddings: whether embeddings round.
    """

    def __init__(self, *, embeddings: bool = True) -> None:
        self.embeddings = embeddings
        self._undo: list[Callable[[], None]] = []
        self._batch: Batch | None = None
        self._last: tuple[Tensor, bool, Steps] | None = None  # queries, keys and values have the same inputs
        self._runs = False  # the backbone does

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeQuantization:
        """Of no model."""
        return FakeQuantization(embeddings=self.embeddings)

    @property
    def attached(self) -> bool:
        """Whether a model rounds."""
        return bool(self._undo)

    def attach(self, backbone: Backbone, head: Head) -> dict[str, int]:
        """Let a model round from now on.

        Returns:
            How many `linear` layers and `embeddings` do.

        Raises:
            UserError: the model has layers that can't, or none that can.
        """
        self.detach()
        layers, tables = quantizable(backbone)
        tables = tables if self.embeddings else []
        for layer in layers:
            self._replace(layer, self._linear)
        for table in tables:
            self._replace(table, _look_up)
        if tables and hasattr(head, "rounds") and getattr(head, "weight", None) is None:
            head.rounds = _Table()  # type: ignore[assignment]
            self._undo.append(partial(delattr, head, "rounds"))
        begin = backbone.register_forward_pre_hook(self._begin, with_kwargs=True)
        end = backbone.register_forward_hook(self._end, always_call=True)
        self._undo += [begin.remove, end.remove]
        return {"linear": len(layers), "embeddings": len(tables)}

    def detach(self) -> None:
        """Let the model compute as before."""
        for undo in self._undo:
            undo()
        self._undo, self._batch, self._last = [], None, None

    def _replace(self, module: nn.Module, run: Callable[..., Tensor]) -> None:
        own = vars(module).get("forward")
        module.forward = _Forward(module, run)
        self._undo.append(
            partial(delattr, module, "forward") if own is None else partial(setattr, module, "forward", own)
        )

    def _begin(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._batch, self._runs = args[0] if args else kwargs["batch"], True

    def _end(self, backbone: nn.Module, args: tuple[Any, ...], hidden: Hidden | None) -> None:
        self._runs, self._last = False, None

    def _linear(self, layer: nn.Module, states: Tensor) -> Tensor:
        weight: Any = layer.weight
        steps_NI = self._rounded(states)
        out_NO = int8_linear(steps_NI, weight.T if isinstance(layer, Conv1D) else weight, layer.bias)  # type: ignore[arg-type]
        return out_NO.view(*states.shape[:-1], -1)

    def _rounded(self, states: Tensor) -> Steps:
        grad = torch.is_grad_enabled()
        if self._last is not None and self._last[0] is states and self._last[1] == grad:
            return self._last[2]
        # What runs with gradients beside the backbone is a part of it that is computed again for the backward pass.
        known = self._batch if self._runs or grad else None
        shape = states.shape
        positions = without_batch(shape, states.device) if known is None else positions_of(shape, known)
        states_NI = states.reshape(-1, shape[-1])
        low_G, high_G = ranges(states_NI, positions)
        steps_NI = input_steps(states_NI, low_G[positions.group_N], high_G[positions.group_N])
        self._last = (states, grad, steps_NI)
        return steps_NI


def _look_up(table: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    assert isinstance(table.weight, Tensor)
    return table_values(type(table).forward(table, *args, **kwargs), table.weight)


@dataclass(eq=False)
class _Forward:
    """A module's forward while it rounds; a copy of the module does not."""

    module: nn.Module
    run: Callable[..., Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.run(self.module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        module = copy.deepcopy(self.module, memo)
        return MethodType(type(module).forward, module)


class _Table:
    """The embeddings (V, E) as a head that is tied to them multiplies with them; a copy of the head does not round."""

    def __call__(self, table_VE: Tensor) -> Tensor:
        return table_values(table_VE, table_VE)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None
