"""Token embeddings of another model as the vectors of a small one: what a teacher knows of each token by itself.

Legend: V vocabulary, N tokens that both have, D width of the other model's embeddings, E width that is wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_arch.backbones.vectors import DRAWN_STD, WordVectors
from llm_arch.types import UserError


def names_a_model(name: str) -> bool:
    """Whether vectors are to come from a model: a directory, `package:NAME/FOLDER` or .gguf file, not a text file."""
    path = Path(name).expanduser()
    return name.startswith("package:") or path.is_dir() or path.suffix == ".gguf"


@torch.no_grad()
def model_vectors(name: str, tokenizer: Any, size: int | None = None) -> WordVectors:
    """The embeddings of a model for the tokens of a tokenizer, found by how tokens are written.

    They are centred, as the common part of a transformer's embeddings tells no tokens apart (Mu & Viswanath 2018),
    and as large as embeddings that are drawn. For a smaller width they become their first principal components.

    Args:
        name: a directory, `package:NAME/FOLDER` or .gguf file, with its tokenizer.
        tokenizer: a fast tokenizer.
        size: E; D unless given.

    Raises:
        UserError: the model can't be read, has no tokens in common with the tokenizer, or is narrower.
    """
    from llm_arch.backbones.load import backbone_from
    from llm_arch.data.tokenizers import load_tokenizer

    table_VD = backbone_from(name).embeddings.weight.float()
    width = table_VD.shape[1]
    if size is not None and size > width:
        raise UserError(
            f"embedding_size is {size}, but the embeddings of {name} have {width} numbers; "
            f"take at most {width}, or leave embedding_size out"
        )
    theirs = load_tokenizer(name).get_vocab()
    pairs = sorted((row, theirs[token]) for token, row in tokenizer.get_vocab().items() if token in theirs)
    pairs = [(row, other) for row, other in pairs if other < len(table_VD)]
    if not {row for row, _ in pairs} - set(tokenizer.all_special_ids):
        raise UserError(
            f"{name}: its tokenizer has no token in common with this one; take a model with the same tokenizer, "
            "or leave vectors out"
        )
    rows_N, others_N = torch.tensor(pairs).unbind(1)
    return WordVectors(rows_N, _drawn_like(table_VD[others_N], size or width), len(table_VD), name)


def _drawn_like(values_ND: Tensor, size: int) -> Tensor:
    """(N, E): centred, the directions that vary most, as large as if drawn."""
    values_ND = values_ND - values_ND.mean(0)
    if size < values_ND.shape[1]:
        _, directions_DD = torch.linalg.eigh(values_ND.T @ values_ND)  # the largest last
        values_ND = values_ND @ directions_DD[:, -size:].flip(1)
    return values_ND * (DRAWN_STD / values_ND.std().clamp(min=torch.finfo().tiny))
