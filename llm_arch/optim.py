"""Which parameters decay and which embeddings have sparse gradients; the optimizer and the schedules by short paths.

`llm_arch.optim.Linear` and its like are what users write as `class_path`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from llm_arch.adamw import RowAdamW
from llm_arch.muon import Muon
from llm_arch.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay
from llm_arch.types import Head, UserError

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "Muon",
    "RowAdamW",
    "Schedule",
    "WarmupStableDecay",
    "make_embeddings_sparse",
    "parameter_groups",
]

SPARSE_FROM_ROWS = 1000  # below this a dense gradient costs next to nothing


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer's groups, each once: "decay", "head", "no_decay" and "embeddings".

    Biases, normalisation weights and everything with less than two dimensions do not decay. Neither do embeddings
    (nor what is tied to one): a row whose gradient is zero then stays exactly where it is.
    The weights of a `Head` decay as those of the layers below it, but optimizers for hidden matrices leave them alone.

    Raises:
        UserError: when weight_decay is negative, or nothing is trainable.
    """
    if not weight_decay >= 0:
        raise UserError(f"weight_decay must be at least 0, got {weight_decay}")
    kinds: dict[Tensor, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                kinds[parameter] = "embeddings"
            elif type(module).__name__.endswith("Norm") or name.endswith("bias") or parameter.ndim < 2:
                kinds.setdefault(parameter, "no_decay")
    for head in (module for module in model.modules() if isinstance(module, Head)):
        for parameter in head.parameters():
            kinds.setdefault(parameter, "head")
    members: dict[str, list[Tensor]] = {"decay": [], "head": [], "no_decay": [], "embeddings": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[kinds.get(parameter, "decay")].append(parameter)
    if not any(members.values()):
        raise UserError("the model has no trainable parameter; unfreeze some of its layers")
    decay = {"decay": weight_decay, "head": weight_decay, "no_decay": 0.0, "embeddings": 0.0}
    return [{"name": kind, "params": params, "weight_decay": decay[kind]} for kind, params in members.items() if params]


def make_embeddings_sparse(module: nn.Module, keep_dense: Sequence[nn.Module] = ()) -> list[str]:
    """Let large embeddings give sparse gradients, which `llm_arch.adamw` takes; returns the embeddings' names.

    Left as they are: embeddings below 1,000 rows, frozen ones, those whose weight is used twice (tied heads), those
    with `max_norm` or `scale_grad_by_freq`, and those in `keep_dense`.
    """
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    names = []
    for name, child in module.named_modules():
        if not isinstance(child, nn.Embedding) or child.max_norm is not None or child.scale_grad_by_freq:
            continue
        if any(child is one for one in keep_dense):
            continue
        if len(child.weight) >= SPARSE_FROM_ROWS and child.weight.requires_grad and uses[id(child.weight)] == 1:
            child.sparse = True
            names.append(name)
    return names
