"""A model of transformers from its name or its configuration, and its attention: what needs transformers' inside."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from llm_arch import model_directory
from llm_arch.backbones.bare import bare
from llm_arch.backbones.vocabulary import PLACEHOLDER
from llm_arch.compression.structure import Structure
from llm_arch.compression.surgery import dense_config, shape_like
from llm_arch.locate import for_transformers, locate
from llm_arch.types import UserError
from llm_arch.untrusted import check_finite, check_shapes, inside, read_json, refuse_links_out, shapes

# Tokens that mark where texts begin and end.
_MARKERS = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"}
# A pruned model is built dense first: by so many times what its file holds, or by so many numbers, it may be larger.
_DENSE_TIMES, _DENSE_MORE = 64, 2**26
_HEADED = "model"  # what encoder–decoders with a head call the one without
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


def random_model(config: PreTrainedConfig, *, encoder_decoder: bool = False) -> PreTrainedModel:
    """The model of this configuration in float32, without a head, with random weights.

    Args:
        config: the configuration.
        encoder_decoder: whether an encoder–decoder is wanted, or else an encoder or a decoder.

    Raises:
        UserError: transformers has no such model for it.
    """
    arguments = _model_arguments(config, encoder_decoder)
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
        raise UserError(_explain(name, True, error)) from error


def dense_model(backbone: Any) -> PreTrainedModel:
    """The model of a `Pretrained` as it was before pruning, with random weights; itself where it was not pruned."""
    model: PreTrainedModel = backbone.model
    return model if backbone.structure is None else random_model(dense_config(model.config, backbone.structure))


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
            _look_through(Path(place), weights=not random_init)
        config = AutoConfig.from_pretrained(place, **hub)
        if random_init:
            return random_model(config, encoder_decoder=encoder_decoder)
        extra = hub | _model_arguments(config, encoder_decoder) | {"dtype": torch.float32}
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
        raise UserError(_explain(name, local, error)) from error
    except Exception as error:
        if not gguf:
            raise
        # Its reader believes what the file says of its sizes, and fails in as many ways.
        raise UserError(_explain(name, local, error)) from error
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
    _check_config(values, directory, layers=len(shapes(weights)))
    config = config_from(values)
    with torch.device("meta"):  # of whatever size, it takes no memory yet
        if structure is None:
            wanted = random_model(copy.deepcopy(config), encoder_decoder=encoder_decoder).state_dict()
        else:
            dense = random_model(dense_config(config, structure))
            _check_dense(dense, weights)
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


def _check_dense(dense: PreTrainedModel, weights: Path) -> None:
    """Raise ValueError where a model before pruning is said to be so large that the file can't be what is left."""
    held = sum(math.prod(shape) for shape in shapes(weights).values())
    said = sum(parameter.numel() for parameter in dense.parameters())
    if said > _DENSE_TIMES * held + _DENSE_MORE:
        raise ValueError(f"{weights.name} holds {held:,} numbers, and is said to be pruned from {said:,}")


def _look_through(directory: Path, *, weights: bool) -> None:
    """Raise a UserError where a directory of transformers leads elsewhere; a ValueError where it can't be whole."""
    refuse_links_out(directory)
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} holds an adapter of peft (adapter_config.json) beside or in place of a model; merge the two, "
            "or remove the adapter's files"
        )
    index = directory / "model.safetensors.index.json"
    files = [directory / "model.safetensors"]
    if not files[0].is_file() and index.is_file():
        named = read_json(index)
        table = named.get("weight_map") if isinstance(named, dict) else None
        if not isinstance(table, dict) or not isinstance(named.get("metadata"), dict):
            raise ValueError(f"{index.name} has no weight_map or metadata")
        files = [inside(directory, file, index.name) for file in dict.fromkeys(table.values())]
    there = weights and all(file.is_file() for file in files)
    layers = sum(len(shapes(file)) for file in files) if there else None
    _check_config(read_json(directory / "config.json"), directory, layers)


def _check_config(values: Any, directory: Path, layers: int | None) -> None:
    """Raise a UserError where a configuration names code to fetch; a ValueError where it can't be that of the weights.

    Args:
        values: what config.json says.
        directory: where it lies.
        layers: how many tensors there are, so that there can't be more layers; None where there are no weights.
    """
    if not isinstance(values, dict):
        raise ValueError("config.json is no mapping")
    for name, value in values.items():
        if isinstance(value, dict):
            _check_config(value, directory, layers)
        elif name.endswith("_implementation") and "/" in str(value):
            place = directory / "config.json"
            raise UserError(f"{place} names code to fetch and run ({name}: {value}); remove the line")
        elif layers is not None and name in _LAYERS and isinstance(value, int) and value > layers:
            raise ValueError(f"{name} is {value:,} in config.json, but the weights are {layers:,} tensors")


def attention_of(config: PreTrainedConfig) -> str:
    """The name of the attention function that a model of this configuration calls."""
    name: str = config._attn_implementation
    return name


def use_attention(config: PreTrainedConfig, name: str) -> None:
    """Let the model of this configuration call another attention function; cheap enough for every forward pass."""
    # The public method of transformers walks the whole model.
    if config._attn_implementation != name:
        config._attn_implementation = name


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


def _model_arguments(config: PreTrainedConfig, encoder_decoder: bool) -> dict[str, Any]:
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


def _explain(name: str, local: bool, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"{name} brings Python code of its own, which is not run unless backbone.trust_remote_code is true"
    if local and not name.endswith(".gguf") and not any(Path(name).expanduser().glob("*.safetensors")):
        pickled = [p.name for p in Path(locate(name)).glob("*.bin")]
        if pickled:
            return (
                f"{name} holds pickled weights only ({pickled[0]}), which are never loaded; "
                f"convert them to model.safetensors first"
            )
        if not list(Path(locate(name)).glob("*.safetensors")):
            return (
                f"{name} holds no weights (model.safetensors); give random_init: true to train its shape from scratch"
            )
    if not local:
        return (
            f"{name} is no local directory, and the hub could not provide it ({type(error).__name__}); "
            f"download it where there is a network and name the local directory"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{name} can't be loaded as a model: {reason}"
