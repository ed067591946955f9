"""What a model of transformers does not say of itself, found out by looking and trying.

Legend: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def proven(config: PreTrainedConfig) -> bool:
    """Whether nothing needs to be tried: a kind from `PROVEN` that attends as it does by default."""
    return config.model_type in PROVEN and getattr(config, "is_causal", True) is not False


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether it is of a kind that reads from left to right."""
    if getattr(config, "is_decoder", False):
        return True
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def position_offset(model: PreTrainedModel) -> int:
    """The position of a sequence's first token: RoBERTa's family counts from padding_idx + 1."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest sequence, where positions are limited; XLNet says -1 for no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return int(limit) - position_offset(model) if limit and int(limit) > 0 else None


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


def is_causal(config: PreTrainedConfig, run: Run, positions: bool) -> bool:
    """Whether another last token leaves the states of all earlier ones as they are."""
    batch = _two_sequences(config)
    changed = batch.input_ids.clone()
    changed[4] = changed[0]
    before_TD = run(batch, "padded", positions)
    after_TD = run(replace(batch, input_ids=changed), "padded", positions)
    return bool((after_TD[:4] - before_TD[:4]).abs().max() <= 1e-5 * before_TD.abs().max())


def _two_sequences(config: PreTrainedConfig) -> Batch:
    lengths = torch.tensor([5, 3])
    position_ids = torch.cat([torch.arange(n) for n in lengths])
    segments = torch.repeat_interleave(torch.arange(2), lengths)
    special = {v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}
    ids = [i for i in range(config.vocab_size) if i not in special][:8]
    return Batch(torch.tensor(ids), position_ids, segments, torch.tensor([0, 5]), lengths, torch.arange(2))
