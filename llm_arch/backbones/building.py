"""A model of transformers from its configuration, dense or pruned, and its attention function."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from llm_arch.backbones.bare import bare
from llm_arch.compression.structure import Structure
from llm_arch.compression.surgery import dense_config, shape_like
from llm_arch.types import UserError


def random_model(config: PreTrainedConfig, *, encoder_decoder: bool = False) -> PreTrainedModel:
    """The model of this configuration in float32, without a head, with random weights.

    Args:
        config: the configuration.
        encoder_decoder: whether an encoder–decoder is wanted, or else an encoder or a decoder.

    Raises:
        UserError: transformers has no such model for it.
    """
    arguments = model_arguments(config, encoder_decoder)
    if isinstance(config, EncoderDecoderConfig):
        try:
            return bare(EncoderDecoderModel(config))
        except ValueError as error:
            kind = config.decoder.model_type
            raise UserError(
                f"{kind} can't be the decoder of an encoder–decoder, it attends to no encoder; take bert, roberta or "
                "gpt2"
            ) from error
    return AutoModel.from_config(config, dtype=torch.float32, **arguments)


def pruned_model(config: PreTrainedConfig, structure: Structure | None) -> PreTrainedModel:
    """As `random_model`, of the sizes that pruning left.

    Args:
        config: of the pruned model.
        structure: what was kept; None where nothing was pruned.

    Raises:
        UserError: the two do not fit.
    """
    if structure is None:
        return random_model(config)
    model = random_model(dense_config(config, structure))
    shape_like(model, structure)
    return model


def dense_model(backbone: Any) -> PreTrainedModel:
    """The model of a `Pretrained` as it was before pruning, with random weights; itself where it was not pruned."""
    model: PreTrainedModel = backbone.model
    return model if backbone.structure is None else random_model(dense_config(model.config, backbone.structure))


def model_arguments(config: PreTrainedConfig, encoder_decoder: bool) -> dict[str, Any]:
    """How transformers shall build a model.

    BERT's pooling layer is never used here, and a parameter without gradient breaks distributed training.
    """
    # A configuration that came with code of its own, which only runs when it was trusted.
    if type(config).__module__.split(".")[0] == "transformers_modules":
        return {"trust_remote_code": True}
    if config.is_encoder_decoder and not encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder–decoder; take EncoderDecoder in place of Pretrained")
    if encoder_decoder and not config.is_encoder_decoder:
        raise UserError(
            f"{config.model_type} is no encoder–decoder; take Pretrained in place of EncoderDecoder, or give it as the "
            "encoder of one"
        )
    if isinstance(config, EncoderDecoderConfig):
        return {}
    known = type(config) in MODEL_MAPPING
    if not known or (encoder_decoder and type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING):
        kind = "encoder–decoder of texts" if encoder_decoder else "plain encoder or decoder"
        raise UserError(f"transformers has no {kind} for model_type {config.model_type!r}")
    kind = MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    arguments: dict[str, Any] = {"attn_implementation": "sdpa" if kind._supports_sdpa else "eager"}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        arguments["add_pooling_layer"] = False
    return arguments


def attention_of(config: PreTrainedConfig) -> str:
    """The name of the attention function that a model of this configuration calls."""
    name: str = config._attn_implementation
    return name


def use_attention(config: PreTrainedConfig, name: str) -> None:
    """Let the model of this configuration call another attention function; cheap enough for every forward pass."""
    # The public method of transformers walks the whole model.
    if config._attn_implementation != name:
        config._attn_implementation = name
