"""Embeddings for the tokens of a tokenizer: of a size that only the data tells, or for tokens that were added.

Legend: V rows of the old embeddings, N new rows, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_arch.types import Backbone, UserError

# Rows that stand in for embeddings whose number is not known yet: enough to try a model out.
PLACEHOLDER = 32
_MOST_ADDED = 1000  # markers, control codes; more is another tokenizer
# Share of the old rows' spread: enough to tell new tokens apart, little beside what all embeddings have in common.
_NOISE = 0.1


@torch.no_grad()
def new_rows(old_VD: Tensor, count: int) -> Tensor:
    """(N, D) the mean of the old rows, each with noise of a tenth of their standard deviation in every dimension.

    A row at zero, or one as large as a rare word's, would stand apart from everything the model has seen; near the
    mean it disturbs least (Hewitt 2021). The noise comes from torch's global generator, so a seed fixes it.

    Args:
        old_VD: the embeddings so far.
        count: N.
    """
    noise_ND = torch.randn(count, old_VD.shape[1], device=old_VD.device, dtype=old_VD.dtype)
    return old_VD.mean(0) + _NOISE * old_VD.std(0, correction=0) * noise_ND


def added_rows(old_VD: Tensor, vocabulary: int) -> Tensor:
    """(N, D) embeddings for tokens that were added to a trained model's tokenizer.

    Args:
        old_VD: the embeddings so far.
        vocabulary: tokens that there are now, more than V.

    Raises:
        UserError: they are so many that it is another tokenizer.
    """
    if vocabulary > len(old_VD) + _MOST_ADDED:
        raise UserError(
            f"the data's tokenizer has {vocabulary} tokens, the backbone knows {len(old_VD)}: it was not trained with "
            "this tokenizer; leave data.tokenizer out to take the backbone's own"
        )
    return new_rows(old_VD, vocabulary - len(old_VD))


def not_sized(backbone: Backbone, option: str) -> UserError:
    """The error of a backbone from scratch that nobody has told how many tokens there are.

    Args:
        backbone: it.
        option: what says it in a config.
    """
    return UserError(
        f"{type(backbone).__name__} does not know how many tokens there are: set {option}, "
        "or pass vocabulary=len(tokenizer) to Task"
    )
