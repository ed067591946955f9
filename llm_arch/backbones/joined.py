"""An encoder and a decoder that were made apart, joined in one model (Rothe et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import EncoderDecoderConfig, EncoderDecoderModel, PreTrainedConfig, PreTrainedModel

from llm_arch.backbones.building import random_model
from llm_arch.backbones.configuration import fresh_config
from llm_arch.backbones.loading import named_model
from llm_arch.backbones.output_head import Checkpoint, fill_transform, head_weights, names_of
from llm_arch.backbones.presets import is_preset, preset
from llm_arch.backbones.vocabulary import PLACEHOLDER
from llm_arch.types import UserError

_CROSS = "cross"  # in the name of every layer that attends to an encoder


class Joined(NamedTuple):
    """A model of two.

    Attributes:
        model: it.
        origin: where the decoder's weights came from; None where they are random.
        sized: whether it knows how many tokens there are.
    """

    model: EncoderDecoderModel
    origin: Checkpoint | None
    sized: bool


def join(
    encoder: str, decoder: str | None, *, share: bool = True, random_init: bool = False, revision: str | None = None
) -> Joined:
    """Two models by their names in one, whose decoder attends to the encoder with new weights.

    Where one of them does not know how many tokens there are, it takes that of the other.

    Args:
        encoder: directory, hub id or preset.
        decoder: likewise; None for the same.
        share: whether both have one table of token embeddings, where theirs are of one size, and equal or random.
        random_init: take the configurations but no weights.
        revision: branch, tag or commit of hub ids.

    Raises:
        UserError: one can't be found or loaded, or the second can't attend to an encoder.
    """
    decoder = encoder if decoder is None else decoder
    names = (encoder, decoder)
    loaded: dict[str, PreTrainedModel] = {}
    for name in names:
        if not is_preset(name) and name not in loaded:
            loaded[name] = named_model(name, random_init=random_init, revision=revision)
    configs = {name: model.config for name, model in loaded.items()}
    presets = {name: preset(name) for name in names if is_preset(name)}
    sizes = [config.vocab_size for config in configs.values()]
    sizes += [values["vocab_size"] for values in presets.values() if "vocab_size" in values]
    for name, values in presets.items():
        configs[name] = fresh_config(values, values.get("vocab_size") or (sizes[0] if sizes else PLACEHOLDER))
    model = random_model(joined_config(configs[encoder], configs[decoder]), encoder_decoder=True)
    assert isinstance(model, EncoderDecoderModel)
    trained = {} if random_init else loaded
    origin = Checkpoint(decoder, revision) if decoder in trained else None
    if encoder in trained:
        model.encoder.load_state_dict(trained[encoder].state_dict())
    if origin is not None:
        _start_decoder(model, trained[decoder], origin)
    if share and (origin is None or encoder not in trained or equal_embeddings(model)):
        share_embeddings(model, of_decoder=encoder not in trained)
    return Joined(model, origin, bool(sizes))


def joined_config(encoder: PreTrainedConfig, decoder: PreTrainedConfig) -> EncoderDecoderConfig:
    """The configuration of both together.

    Texts to write begin with the token that the encoder's texts begin with, where its configuration tells it.

    Args:
        encoder: of the encoder.
        decoder: of an encoder or a decoder; it becomes one that attends to an encoder.
    """
    return EncoderDecoderConfig(
        encoder=encoder.to_dict(),
        decoder=decoder.to_dict() | {"is_decoder": True, "add_cross_attention": True},
        decoder_start_token_id=getattr(encoder, "cls_token_id", None),
        pad_token_id=decoder.pad_token_id,
    )


def equal_embeddings(model: EncoderDecoderModel) -> bool:
    """Whether encoder and decoder have the same token embeddings."""
    encoder, decoder = model.encoder.get_input_embeddings(), model.decoder.get_input_embeddings()
    return torch.equal(encoder.weight, decoder.weight)


def share_embeddings(model: EncoderDecoderModel, *, of_decoder: bool = False) -> None:
    """Let encoder and decoder have one table of token embeddings, where theirs are of one size.

    Args:
        model: the two.
        of_decoder: whether it is the decoder's that stays.
    """
    tables = [model.encoder.get_input_embeddings(), model.decoder.get_input_embeddings()]
    if tables[0].weight.shape == tables[1].weight.shape:
        kept, other = reversed(tables) if of_decoder else tables
        other.weight = kept.weight


def projection(origin: Checkpoint, config: PreTrainedConfig, table: Sequence[str]) -> dict[str, Tensor] | None:
    """What the head beside the decoder's first weights has behind its transform: a bias, and a weight if not tied.

    Args:
        origin: where they came from.
        config: the decoder's.
        table: names of its token embeddings.
    """
    found = head_weights(origin, "masked", config, table) or head_weights(origin, "causal", config, table)
    return None if found is None else {name: found[name] for name in ("bias", "weight") if name in found}


def written_twice(model: EncoderDecoderModel) -> dict[str, Tensor]:
    """The weights to save: shared embeddings once for each of the two, as plain transformers reads them."""
    state = model.state_dict()
    table = model.encoder.get_input_embeddings().weight
    if table is model.decoder.get_input_embeddings().weight:
        for name in names_of(model, table)[1:]:
            state[name] = state[name].clone()
    return state


def _start_decoder(model: EncoderDecoderModel, start: PreTrainedModel, origin: Checkpoint) -> None:
    """Let the decoder go on from a model's weights, and its transform from the head that lies beside them."""
    weights: Mapping[str, Tensor] = start.state_dict()
    missing, unknown = model.decoder.base_model.load_state_dict(dict(weights), strict=False)
    missing = [name for name in missing if _CROSS not in name]
    if missing or unknown:
        raise UserError(
            f"{origin.name} ({start.config.model_type}) can't be the decoder of an encoder–decoder: "
            f"{', '.join((missing + unknown)[:3])} are in one of the two only; take bert, roberta or gpt2"
        )
    found = head_weights(origin, "masked", start.config, names_of(start, start.get_input_embeddings().weight))
    if found is not None:
        fill_transform(model.decoder, start.config, found)
