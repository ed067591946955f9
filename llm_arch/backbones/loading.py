"""A model of transformers from its name or its configuration, and its attention: what needs transformers' inside."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llm_arch.locate import locate
from llm_arch.types import UserError

# Tokens that mark where texts begin and end.
_MARKERS = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}


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


def _special(values: Mapping[str, Any], vocabulary: int) -> dict[str, None]:
    """The ids of special tokens to leave out."""
    unset: dict[str, None] = {}
    for name, value in config_from(values).to_dict().items():
        if not name.endswith("_token_id") or value is None:
            continue
        beyond = max(value if isinstance(value, list) else [value]) >= vocabulary
        if beyond and name in values:
            raise UserError(f"{name} is {value}, but the vocabulary has {vocabulary} tokens, so ids below that")
        if beyond or (name in _MARKERS and name not in values):
            unset[name] = None
    return unset


def with_dropout(config: PreTrainedConfig, probability: float) -> PreTrainedConfig:
    """A copy of the configuration with this probability in [0, 1) for all dropout but a classifier's.

    Raises:
        UserError: the probability is another, or the configuration names no dropout.
    """
    if not 0 <= probability < 1:
        raise UserError(f"dropout must be in [0, 1), got {probability}")
    config = copy.deepcopy(config)
    names = [
        k
        for k, v in config.to_dict().items()
        if ("dropout" in k or k.endswith("pdrop"))
        and "classifier" not in k
        and isinstance(v, int | float)
        and not isinstance(v, bool)
    ]
    if not names:
        raise UserError(f"{config.model_type} has no dropout in its configuration; leave model.dropout out")
    for name in names:
        setattr(config, name, probability)
    return config


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder or decoder of this configuration in float32, with random weights.

    Raises:
        UserError: transformers has no plain encoder or decoder for it.
    """
    return AutoModel.from_config(config, dtype=torch.float32, **_model_arguments(config))


def named_model(
    name: str, *, random_init: bool = False, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The encoder or decoder of that name in float32, with its weights unless `random_init`.

    Args:
        name: a directory with config.json and safetensors, a hub id or `package:NAME/FOLDER`.
        random_init: take the configuration but not the weights.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UserError: the model can't be found or loaded, or its weights do not fit its configuration.
    """
    place = locate(name)
    local = Path(place).is_dir()
    if local and not (Path(place) / "config.json").is_file():
        raise UserError(f"{name} holds no config.json, so it is no model directory of transformers or of llm-arch")
    hub: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not local:
        hub["revision"] = revision
    try:
        config = AutoConfig.from_pretrained(place, **hub)
        if random_init:
            return random_model(config)
        extra = hub | _model_arguments(config) | {"dtype": torch.float32}
        with no_progress_bars():
            model, report = AutoModel.from_pretrained(
                place, config=config, use_safetensors=True, output_loading_info=True, **extra
            )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_explain(name, local, error)) from error
    missing = [k for k in report["missing_keys"] if "position_ids" not in k]
    if missing or report["mismatched_keys"]:
        raise UserError(
            f"{name}: the weights do not fit the configuration: {len(missing)} missing "
            f"({', '.join(sorted(missing)[:3])}), {len(report['mismatched_keys'])} of another shape"
        )
    return model


def saved_model(directory: Path) -> PreTrainedModel:
    """Rebuild from config.json on CPU (on meta, buffers that are not saved turn to NaN), then load strictly.

    Raises:
        UserError: weights and configuration do not fit.
    """
    model = random_model(config_from(json.loads((directory / "config.json").read_text(encoding="utf-8"))))
    missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if set(missing) - tied or unexpected:
        raise UserError(
            f"{directory / 'model.safetensors'} does not fit {directory / 'config.json'}: "
            f"{sorted(set(missing) - tied)[:3]} missing, {list(unexpected)[:3]} unknown"
        )
    return model


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


def _model_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """How transformers shall build a model.

    BERT's pooling layer is never used here, and a parameter without gradient breaks distributed training.
    """
    # A configuration that came with code of its own, which only runs when it was trusted.
    if type(config).__module__.split(".")[0] == "transformers_modules":
        return {"trust_remote_code": True}
    if type(config) not in MODEL_MAPPING:
        raise UserError(f"transformers has no plain encoder or decoder for model_type {config.model_type!r}")
    if config.is_encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder–decoder; this backbone takes an encoder or a decoder")
    kind = MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    arguments: dict[str, Any] = {"attn_implementation": "sdpa" if kind._supports_sdpa else "eager"}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        arguments["add_pooling_layer"] = False
    return arguments


def _explain(name: str, local: bool, error: Exception) -> str:
    if local and not any(Path(name).expanduser().glob("*.safetensors")):
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
    if "trust_remote_code" in str(error):
        return f"{name} brings Python code of its own, which is not run unless backbone.trust_remote_code is true"
    if not local:
        return (
            f"{name} is no local directory, and the hub could not provide it ({type(error).__name__}); "
            f"download it where there is a network and name the local directory"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{name} can't be loaded as a model: {reason}"
