"""Small stacks of a model's layers, dense and pruned, and how long they take by turns.

Real layers are timed, as many as fill the processor's caches: fewer would stay in there, as those of a whole model do
not. Models take turns, since a machine is not always as fast.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from llm_arch.compression.anatomy import LayerParts, anatomy
from llm_arch.compression.structure import Structure
from llm_arch.compression.surgery import prune
from llm_arch.types import Backbone, Batch

DEPTH, STACK_BYTES = (2, 6), 2**26  # layers of a stack: so many bytes of weights fill the caches
CALLS, FEWEST_TURNS = 2, 4


def dense_stack(backbone: Backbone) -> Any:
    """A copy with a few whole layers, which shares its embeddings with the backbone."""
    gates = getattr(backbone, "gates", None)
    shared = {id(p): p for p in backbone.embeddings.parameters()}
    made: Any = copy.deepcopy(backbone, {**shared, id(gates): None} if gates is not None else shared)
    for module in made.modules():
        module._forward_hooks.clear()  # gates, and whatever else follows the training
        module._forward_pre_hooks.clear()
    parts = anatomy(made.model)
    whole = Structure.whole(made.model)
    largest = max(parts, key=size)
    weights = sum(p.numel() * p.element_size() for p in largest.layer.parameters())
    fewest, most = DEPTH
    kept = whole.layers[: max(fewest, min(most, STACK_BYTES // weights))]
    prune(made.model, replace(whole, layers=kept, heads=whole.heads[: len(kept)], neurons=whole.neurons[: len(kept)]))
    if any(size(part) != size(largest) for part in anatomy(made.model)):  # it was pruned before
        stack = _stack(made.model)
        for place in range(len(stack)):
            stack[place] = copy.deepcopy(largest.layer)
    return made.eval()


def pruned_stack(dense: Any, heads: int, neurons: int) -> Any:
    """A copy whose layers have so many heads and neurons."""
    made = copy.deepcopy(dense, {id(p): p for p in dense.embeddings.parameters()})
    whole = Structure.whole(made.model)
    count = len(whole.layers)
    prune(
        made.model,
        replace(whole, heads=(tuple(range(heads)),) * count, neurons=(tuple(range(neurons)),) * count),
    )
    return made


def _stack(model: nn.Module) -> nn.ModuleList:
    first = anatomy(model)[0].layer
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and m[0] is first)


def size(part: LayerParts) -> tuple[int, int]:
    """Columns of a layer's heads, and its neurons."""
    return part.heads * part.head_columns, part.neurons


@dataclass(frozen=True)
class Times:
    """The fastest call of a turn: seconds of the layers, and of the backbone besides."""

    stack: float
    outside: float


def share(ours: Sequence[Times], of_dense: Sequence[Times]) -> float:
    """The seconds of a stack over those of the dense one, of each turn; the median."""
    return median(one.stack / dense.stack for one, dense in zip(ours, of_dense, strict=True))


def alternate(models: Sequence[Any], lengths: Sequence[int], seconds: float) -> list[list[list[Times]]]:
    """Times of each model at each length, turn by turn."""
    found: list[list[list[Times]]] = [[[] for _ in lengths] for _ in models]
    device = models[0].embeddings.weight.device
    clock = clock_of(device)
    vocabulary = models[0].embeddings.num_embeddings
    batches = [batch_of(length, vocabulary).to(device) for length in lengths]
    end, turns = clock() + seconds, 0
    with torch.inference_mode(), _watched(models, clock) as watch:
        while turns <= FEWEST_TURNS or clock() < end:
            for place, batch in enumerate(batches):
                for model, of_model in zip(models, found, strict=True):
                    model(batch)  # brings it back into the processor's caches
                    calls = []
                    for _ in range(CALLS if turns else 0):  # the first turn makes kernels
                        start = clock()
                        model(batch)
                        whole = clock() - start
                        stack = watch[1] - watch[0]
                        calls.append(Times(stack, whole - stack))
                    if calls:  # the fastest: whatever else the machine does only slows down
                        of_model[place].append(min(calls, key=lambda one: one.stack))
            turns += 1
    return found


@contextmanager
def _watched(models: Sequence[Any], clock: Callable[[], float]) -> Iterator[list[float]]:
    """When the first layer last began, and the last one ended."""
    watch = [0.0, 0.0]
    hooks = []

    def note(place: int) -> Callable[..., None]:
        def now(*_: Any) -> None:
            watch[place] = clock()

        return now

    for model in models:
        layers = [part.layer for part in anatomy(model.model)]
        hooks += [layers[0].register_forward_pre_hook(note(0)), layers[-1].register_forward_hook(note(1))]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def batch_of(length: int, vocabulary: int) -> Batch:
    """A row of so many tokens."""
    positions = torch.arange(length)
    zero = torch.zeros(1, dtype=torch.long)
    ids = (positions * 97 + 5) % vocabulary
    return Batch(ids, positions, torch.zeros_like(positions), zero, torch.tensor([length]), zero)


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock in seconds for what runs on this device."""
    if device.type != "cpu":

        def synchronised() -> float:
            torch.accelerator.synchronize(device)
            return time.perf_counter()

        return synchronised
    # Other processes hardly change CPU time; but that of several threads adds up.
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
