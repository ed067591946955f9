"""Texts continued by transformers' own `generate`, around a backbone's model and whatever head gives the logits.

Legend: R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from llm_arch.backbones.building import attention_of, use_attention
from llm_arch.types import UserError

# They change what is returned, or want the logits of more than the last token.
_NOT_TAKEN = ("num_return_sequences", "return_dict_in_generate", "assistant_model", "prompt_lookup_num_tokens")
_OTHER_ENDS = ("stopping_criteria", "stop_strings", "max_time")
_FILL = -1  # what beam search fills up with where nothing ends a text


class Limits(NamedTuple):
    """Where texts end.

    Attributes:
        context: longest sequence of the model, or None.
        max_new_tokens: tokens to add at most, from 1.
        end: tokens that end a text.
        pad: what shorter rows are filled up with.
    """

    context: int | None
    max_new_tokens: int
    end: Sequence[int]
    pad: int


def shell(
    model: PreTrainedModel,
    states: Callable[[ModelOutput], Tensor],
    logits: Callable[[Tensor], Tensor],
    position_offset: int | None = 0,
) -> Any:
    """The language model of transformers that goes with this model, with our head's logits in place of its own.

    It brings along how models of its kind prepare what they read next, and nothing is built or copied.

    Args:
        model: a decoder or an encoder–decoder without a head.
        states: its output → the last layer's states (R, L, D).
        logits: states (R, D) → logits (R, V).
        position_offset: the position of a text's first token; None for a model that counts them itself.
    """
    return _shell_of(_kind(model.config))(model, states, logits, position_offset)


class _Shell:
    """Stands before a class of transformers, whose constructor is not called."""

    def __init__(
        self,
        model: PreTrainedModel,
        states: Callable[[ModelOutput], Tensor],
        logits: Callable[[Tensor], Tensor],
        position_offset: int | None,
    ) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self.config = model.config
        self.generation_config = GenerationConfig()
        self.inner = model

        # `generate` reads from the signature what the model takes.
        @functools.wraps(model.forward)
        def forward(*arguments: Any, **fields: Any) -> ModelOutput:
            if fields.get("position_ids") is not None:
                told = None if position_offset is None else fields["position_ids"] + position_offset
                fields["position_ids"] = told
            out = model(*arguments, **fields)
            kept = {name: value for name, value in out.items() if name not in ("logits", "last_hidden_state")}
            return ModelOutput({"logits": logits(states(out)[:, -1])[:, None], **kept})

        self.forward = forward

    def get_encoder(self, modality: str | None = None) -> Any:
        """The model's."""
        return self.inner.get_encoder()


class _AnyModel(PreTrainedModel, GenerationMixin):
    """For models that transformers knows no language model of."""


def _kind(config: PreTrainedConfig) -> Any:
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    kind: Any = mapping.get(type(config), _AnyModel)
    return kind[0] if isinstance(kind, tuple) else kind


@functools.cache
def _shell_of(kind: Any) -> Any:
    return type(f"{kind.__name__}Shell", (_Shell, kind), {})


def continued(
    shell: Any,
    inputs: Callable[[list[int]], Mapping[str, Tensor]],
    lengths: Sequence[int],
    limits: Limits,
    options: Mapping[str, Any],
) -> list[list[int]]:
    """What follows each of some beginnings, without them and without the token that ended it.

    A beginning near the model's context gets what room it has, whatever is continued beside it.

    Args:
        shell: from `shell`.
        inputs: numbers of rows → what `generate` reads of them; beginnings are filled up in front.
        lengths: tokens of each beginning.
        limits: where texts end.
        options: of transformers' `generate`; and `constrain`, which makes logits processors from the length of the
            beginnings, padding included, and how many tokens may be added.

    Raises:
        UserError: an option that is not taken, or no room.
    """
    options = dict(options)
    constrain = options.pop("constrain", None)
    taken = [name for name in _NOT_TAKEN if options.get(name)]
    if taken and not (taken == ["num_return_sequences"] and options["num_return_sequences"] == 1):
        raise UserError(f"{taken[0]} can't be used here: there is one text for each beginning; leave it out")
    if limits.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {limits.max_new_tokens}")
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        room = limits.max_new_tokens if limits.context is None else limits.context - length
        if room < 1:
            raise UserError(
                f"sequence {row + 1} has {length} tokens, and the model's context holds {limits.context}, "
                "which leaves no room to go on; shorten it"
            )
        # Decoders beside an encoder count positions from the left, padding too.
        groups[min(limits.max_new_tokens, room), length if shell.config.is_encoder_decoder else 0].append(row)
    found: list[list[int]] = [[]] * len(lengths)
    for (room, _), rows in groups.items():
        fields: dict[str, Any] = dict(inputs(rows))
        begun = fields["decoder_input_ids"] if shell.config.is_encoder_decoder else fields["input_ids"]
        if shell.config.is_encoder_decoder:
            fields["decoder_start_token_id"] = int(begun[0, 0])
        if constrain is not None:
            fields["logits_processor"] = LogitsProcessorList(constrain(begun.shape[1], room))
        with torch.no_grad():
            out = shell.generate(
                **fields,
                max_new_tokens=room,
                pad_token_id=limits.pad,
                eos_token_id=list(limits.end) or None,
                **options,
            )
        padded = any(options.get(name) for name in _OTHER_ENDS)
        for row, ids in zip(rows, out[:, begun.shape[1] :].tolist(), strict=True):
            found[row] = _cut(ids, limits, padded)
    return found


def _cut(ids: list[int], limits: Limits, padded: bool) -> list[int]:
    """The tokens before the one that ended the text; `padded` says that others may have, with padding behind them."""
    length = next((i for i, token in enumerate(ids) if token in limits.end), len(ids))
    while padded and length == len(ids) and ids and ids[-1] in (limits.pad, _FILL):
        ids, length = ids[:-1], length - 1
    return ids[:length]


@contextmanager
def as_transformers(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Within the block the model runs as transformers means it, padded and without dropout; afterwards as before.

    Args:
        model: the model.
        attention: the name of the attention function to use.
    """
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, attention_of(config)) for config in configs.values()]
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        for config, _ in before:
            use_attention(config, attention)
        yield
    finally:
        for config, name in before:
            use_attention(config, name)
        for part, training in modes:
            part.training = training
