"""A model of transformers from its name, or from a directory of ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GgufConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from llm_arch import model_directory
from llm_arch.backbones.bare import bare
from llm_arch.backbones.building import model_arguments, pruned_model, random_model
from llm_arch.backbones.checking import check_config, check_dense, explained, look_through
from llm_arch.backbones.configuration import config_from
from llm_arch.compression.structure import Structure
from llm_arch.compression.surgery import dense_config, shape_like
from llm_arch.locate import for_transformers, locate
from llm_arch.types import UserError
from llm_arch.untrusted import check_finite, check_shapes, read_json, shapes

_HEADED = "model"  # what encoder–decoders with a head call the one without


def named_model(
    name: str,
    *,
    random_init: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    encoder_decoder: bool = False,
) -> PreTrainedModel:
    """The model of that name in float32, without a head, with its weights unless `random_init`.

    Args:
        name: a directory with config.json and safetensors, a .gguf file, a hub id or `package:NAME/FOLDER`.
        random_init: take the configuration but not the weights.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model.
        encoder_decoder: whether an encoder–decoder is wanted, or else an encoder or a decoder.

    Raises:
        UserError: the model can't be found or loaded, or its weights do not fit its configuration.
    """
    place, gguf = for_transformers(locate(name))
    local = Path(place).is_dir()
    if local and recorded_structure(place) is not None:
        raise UserError(
            f"{name} is a pruned model, which serves as a backbone (Pretrained) but not as a part of another"
        )
    if local and not gguf and not (Path(place) / "config.json").is_file():
        raise UserError(f"{name} holds no config.json, so it is no model directory of transformers or of llm-arch")
    hub: dict[str, Any] = {"trust_remote_code": trust_remote_code, **gguf}
    if not local:
        hub["revision"] = revision
    try:
        if local and not gguf:
            look_through(Path(place), weights=not random_init)
        config = AutoConfig.from_pretrained(place, **hub)
        if random_init:
            return random_model(config, encoder_decoder=encoder_decoder)
        extra = hub | model_arguments(config, encoder_decoder) | {"dtype": torch.float32}
        if gguf:  # what is left in its blocks can be neither trained nor saved
            extra["quantization_config"] = GgufConfig(dequantize=True)
        kind = EncoderDecoderModel if isinstance(config, EncoderDecoderConfig) else AutoModel
        with no_progress_bars():
            model, report = kind.from_pretrained(
                place, config=config, use_safetensors=True, output_loading_info=True, **extra
            )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(explained(name, local, error)) from error
    except Exception as error:
        if not gguf:
            raise
        # Its reader believes what the file says of its sizes, and fails in as many ways.
        raise UserError(explained(name, local, error)) from error
    if isinstance(model, EncoderDecoderModel):
        model = bare(model)
    there = dict(model.named_parameters())  # without what `bare` has taken out
    formula = {name.removeprefix(f"{_HEADED}.") for name in model._keys_to_ignore_on_load_missing or ()}
    for name in formula & there.keys():  # Marian's positions, which transformers does not save
        there.pop(name).requires_grad_(False)
    missing = [k for k in report["missing_keys"] if k in there]
    if missing or report["mismatched_keys"]:
        raise UserError(
            f"{name}: the weights do not fit the configuration: {len(missing)} missing "
            f"({', '.join(sorted(missing)[:3])}), {len(report['mismatched_keys'])} of another shape"
        )
    check_finite(there, name)
    return model


def saved_model(
    directory: Path, *, encoder_decoder: bool = False, structure: Structure | None = None
) -> PreTrainedModel:
    """Rebuild from config.json on CPU (on meta, buffers that are not saved turn to NaN), then load strictly.

    Args:
        directory: with config.json and model.safetensors.
        encoder_decoder: whether an encoder–decoder is wanted, or else an encoder or a decoder.
        structure: what pruning left of an encoder or a decoder.

    Raises:
        UserError: weights and configuration do not fit.
    """
    weights = directory / "model.safetensors"
    values = read_json(directory / "config.json")
    check_config(values, directory, layers=len(shapes(weights)))
    config = config_from(values)
    with torch.device("meta"):  # of whatever size, it takes no memory yet
        if structure is None:
            wanted = random_model(copy.deepcopy(config), encoder_decoder=encoder_decoder).state_dict()
        else:
            dense = random_model(dense_config(config, structure))
            check_dense(dense, weights)
            shape_like(dense, structure)
            wanted = dense.state_dict()
    by = "config.json" if structure is None else f"config.json and {model_directory.RECORD}"
    check_shapes(weights, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, by)
    model = (
        random_model(config, encoder_decoder=encoder_decoder) if structure is None else pruned_model(config, structure)
    )
    missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if set(missing) - tied or unexpected:
        raise UserError(
            f"{directory / 'model.safetensors'} does not fit {directory / 'config.json'}: "
            f"{sorted(set(missing) - tied)[:3]} missing, {list(unexpected)[:3]} unknown"
        )
    return model


def named_pruned_model(name: str, structure: Structure, *, random_init: bool = False) -> PreTrainedModel:
    """As `named_model`, of a directory of ours that holds a pruned model.

    Args:
        name: the directory.
        structure: what its record says was kept.
        random_init: take the sizes but not the weights.

    Raises:
        UserError: it can't be loaded.
    """
    place = Path(locate(name))
    try:
        if random_init:
            return pruned_model(config_from(read_json(place / "config.json")), structure)
        return saved_model(place, structure=structure)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(explained(name, True, error)) from error


def recorded_structure(name: str) -> Structure | None:
    """What was kept of the backbone in this directory of ours; None where nothing was pruned, or it is none of ours.

    Raises:
        UserError: the record can't be read.
    """
    place = Path(locate(name))
    if not model_directory.is_model_directory(place):
        return None
    return structure_of(model_directory.read(place)["backbone"], place)


def structure_of(record: Mapping[str, Any], directory: Path) -> Structure | None:
    """What a backbone's record says of pruning; None for nothing.

    Args:
        record: the record.
        directory: where it lies, for the message.

    Raises:
        UserError: what it says can't be.
    """
    if record.get("structure") is None:
        return None
    try:
        return Structure.from_dict(record["structure"])
    except UserError as error:
        raise UserError(f"{directory / model_directory.RECORD} is damaged: {error}") from error


def is_encoder_decoder(name: str) -> bool:
    """Whether this names an encoder–decoder, by its configuration; False where there is none that can be read."""
    try:
        # Left to itself, transformers asks on the terminal whether to run code that comes with a model.
        return bool(AutoConfig.from_pretrained(locate(name), trust_remote_code=False).is_encoder_decoder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and saving take a second: transformers' bars and its load report are noise here."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
