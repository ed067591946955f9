"""The configuration of a model of transformers, from what a user gave."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from llm_arch.backbones.vocabulary import PLACEHOLDER
from llm_arch.types import UserError

# Tokens that mark where texts begin and end.
_MARKERS = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
_MARKERS |= {"decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"}


def config_from(values: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that has these values, `model_type` among them.

    Raises:
        UserError: there is no `model_type`, or transformers knows none of that name.
    """
    values = dict(values)
    kind = values.pop("model_type", None)
    if kind is None:
        raise UserError("a backbone config needs a model_type, such as bert, roberta, gpt2, modernbert or llama")
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError:
        raise UserError(
            f"transformers knows no model_type {kind!r}; try bert, roberta, gpt2, modernbert or llama"
        ) from None


def fresh_config(values: Mapping[str, Any], vocabulary: int) -> PreTrainedConfig:
    """As `config_from`, of a model that is to be trained from scratch on a tokenizer of this size.

    Where transformers says the id of a special token but `values` does not, it is left out: it means something else in
    another vocabulary. Only padding keeps its id if there is one, since some models count positions from it.

    Args:
        values: what the user gave.
        vocabulary: V.

    Raises:
        UserError: V is no size, or an id that was given is none of its tokens.
    """
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise UserError(f"vocab_size must be at least 1, got {vocabulary!r}")
    return config_from({**values, "vocab_size": vocabulary, **_special(values, vocabulary)})


def first_config(values: Mapping[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any] | None]:
    """The configuration to build from first, and what waits for the tokenizer's size: ids of special tokens.

    Args:
        values: what the user gave; with a `vocab_size` nothing has to wait, and there is None.
    """
    size = values.get("vocab_size")
    if size is not None:
        return fresh_config(values, size), None
    waiting = {k: v for k, v in values.items() if k.endswith("_token_id")}
    return fresh_config(
        {k: v for k, v in values.items() if k not in waiting and k != "vocab_size"}, PLACEHOLDER
    ), waiting


def _special(values: Mapping[str, Any], vocabulary: int) -> dict[str, int | None]:
    """The ids of special tokens to leave out."""
    unset: dict[str, int | None] = {}
    config = config_from(values)
    fields = getattr(config, "__dataclass_fields__", {})
    for name, value in config.to_dict().items():
        if not name.endswith("_token_id") or value is None:
            continue
        beyond = max(value if isinstance(value, list) else [value]) >= vocabulary
        if beyond and name in values:
            raise UserError(f"{name} is {value}, but the vocabulary has {vocabulary} tokens, so ids below that")
        if beyond or (name in _MARKERS and name not in values):
            # Marian must have a token that its texts start with.
            unset[name] = 0 if name in fields and fields[name].type is int else None
    return unset


def with_dropout(config: PreTrainedConfig, probability: float) -> PreTrainedConfig:
    """A copy of the configuration with this probability in [0, 1) for all dropout but a classifier's.

    Raises:
        UserError: the probability is another, or the configuration names no dropout.
    """
    if not 0 <= probability < 1:
        raise UserError(f"dropout must be in [0, 1), got {probability}")
    config = copy.deepcopy(config)
    parts = list(config.sub_configs)
    for part in parts:
        setattr(config, part, with_dropout(getattr(config, part), probability))
    names = [
        k
        for k, v in config.to_dict().items()
        if ("dropout" in k or k.endswith("pdrop"))
        and "classifier" not in k
        and isinstance(v, int | float)
        and not isinstance(v, bool)
    ]
    if not (names or parts):
        raise UserError(f"{config.model_type} has no dropout in its configuration; leave model.dropout out")
    for name in names:
        setattr(config, name, probability)
    return config
