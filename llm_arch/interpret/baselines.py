"""What stands for nothing: embeddings or tokens that words are compared with.

Legend: T tokens of the batch, E embedding size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llm_arch.interpret.method import Given
from llm_arch.types import UserError

Embedded = Literal["mask", "pad", "zero"]
Replaced = Literal["mask", "pad", "unknown", "end", "remove"]


def embedded_baseline(given: Given, embeds_TE: Tensor, name: str | None) -> tuple[Tensor, str]:
    """(T, E) embeddings of nothing, fixed tokens as they are, and the name of what was taken.

    Args:
        given: the rows.
        embeds_TE: their word embeddings.
        name: `mask` or `pad`, the embedding of such a token, or `zero`; None for the first that there is.

    Raises:
        UserError: the tokenizer has no such token.
    """
    chosen = name or next((n for n in ("mask", "pad") if n in given.special_ids), "zero")
    if chosen == "zero":
        nothing_TE = torch.zeros_like(embeds_TE)
    else:
        token = torch.tensor(_id_of(given, chosen, "zero"), device=embeds_TE.device)
        with torch.no_grad():
            nothing_TE = given.function.table(token).expand_as(embeds_TE)
    return torch.where(given.fixed_T[:, None], embeds_TE, nothing_TE), chosen


def replacement(given: Given, name: str | None) -> tuple[int | None, str]:
    """The token to put in the place of words, None to take words out, and the name of what was taken.

    Args:
        given: the rows.
        name: `mask`, `pad`, `unknown` or `end`, or `remove`; None for the first token that there is.

    Raises:
        UserError: the tokenizer has no such token.
    """
    chosen = name or next(iter(given.special_ids), "remove")
    return (None if chosen == "remove" else _id_of(given, chosen, "remove")), chosen


def check_baseline(name: str | None, known: tuple[str, ...]) -> None:
    """Raise UserError where a baseline is none of those that a method knows."""
    if name is not None and name not in known:
        raise UserError(f"baseline must be one of {', '.join(known)}, got {name!r}")


def _id_of(given: Given, name: str, other: str) -> int:
    if name not in given.special_ids:
        known = ", ".join([*given.special_ids, other])
        raise UserError(f"the tokenizer of this model has no {name} token; set the baseline to one of {known}")
    return given.special_ids[name]
