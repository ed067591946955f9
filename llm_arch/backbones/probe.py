"""What a model of transformers does not say of itself, found out by looking and trying.

Legend: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from llm_arch.types import Batch, UserError

Layout = Literal["auto", "flat", "padded"]
# Batch, layout, whether the model is told the positions → states (T, D), without dropout or gradients.
Run = Callable[[Batch, Layout, bool], Tensor]

# Equal flat and padded, and with positions given, by this project's tests; others are tried when they are built.
PROVEN = {"bert", "roberta", "gpt2", "modernbert", "llama"}


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether a token sees only what came before it."""
    if getattr(config, "is_decoder", False):
        return True
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def position_offset(model: PreTrainedModel) -> int:
    """The position of a sequence's first token: RoBERTa's family counts from padding_idx + 1."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0


def takes_positions(config: PreTrainedConfig, run: Run) -> bool:
    """Whether positions may be told to the model: they are left to it where it counts in a way of its own.

    Raises:
        UserError: the model can't be run.
    """
    batch = _two_sequences(config)
    try:
        told_TD = run(batch, "padded", True)
        own_TD = run(batch, "padded", False)  # as plain transformers runs it, which is the measure
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{config.model_type} can't be run as a text backbone ({type(error).__name__}: {reason})"
        ) from error
    return bool((told_TD - own_TD).abs().max() <= 1e-4 * own_TD.abs().max())


def why_padded(config: PreTrainedConfig, run: Run, positions: bool) -> str | None:
    """Why this model can't run flat, or None when flat and padded agree on two short sequences."""
    if getattr(config, "attention_chunk_size", None):
        return f"{config.model_type} attends in chunks, which packed attention does not do"
    batch = _two_sequences(config)
    try:
        padded_TD = run(batch, "padded", positions)
        # Some models run but ignore the borders: equal numbers are the only proof.
        difference = (run(batch, "flat", positions) - padded_TD).abs().max() / padded_TD.abs().max().clamp(min=1e-6)
    except Exception as error:  # noqa: BLE001 - whatever a foreign model raises, padded is the answer
        return f"{config.model_type} does not take packed attention ({type(error).__name__})"
    if not difference <= 1e-4:
        return f"{config.model_type} gives other numbers without padding (relative difference {difference:.1g})"
    return None


def _two_sequences(config: PreTrainedConfig) -> Batch:
    lengths = torch.tensor([5, 3])
    position_ids = torch.cat([torch.arange(n) for n in lengths])
    segments = torch.repeat_interleave(torch.arange(2), lengths)
    special = {v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}
    ids = [i for i in range(config.vocab_size) if i not in special][:8]
    return Batch(torch.tensor(ids), position_ids, segments, torch.tensor([0, 5]), lengths, torch.arange(2))
