"""A transformer that keeps some of its layers, with their weights: where a smaller student begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llm_arch.compression.structure import Structure
from llm_arch.types import Backbone, UserError


def keep_layers(backbone: Backbone, which: int | Sequence[int]) -> None:
    """Take out all other layers of a backbone, which records it as it does all pruning.

    Args:
        backbone: a transformer.
        which: the layers to keep, counted from 0; or how many, spread evenly and the last among them.

    Raises:
        UserError: there are no such layers, or the backbone can't lose any.
    """
    whole: Any = backbone
    if not hasattr(backbone, "prune"):
        raise UserError(
            f"model.keep_layers takes a transformer (BERT, GPT-2, ModernBERT, Llama) without LoRA, and the backbone is "
            f"{type(backbone).__name__}; leave it out"
        )
    structure = Structure.whole(whole.model)
    count = structure.of.layers
    if isinstance(which, int):
        if not 1 <= which <= count:
            raise UserError(f"model.keep_layers must be from 1 to {count}, which the backbone has, got {which}")
        which = [math.ceil(layer * count / which) - 1 for layer in range(1, which + 1)]
    kept = sorted(which)
    if not kept or len(set(kept)) < len(kept) or not 0 <= kept[0] <= kept[-1] < count:
        raise UserError(
            f"model.keep_layers names layers, each once, from 0 to {count - 1}, which the backbone has, got {[*which]}"
        )
    whole.prune(
        Structure(
            tuple(kept),
            tuple(structure.heads[layer] for layer in kept),
            tuple(structure.neurons[layer] for layer in kept),
            structure.of,
        )
    )
