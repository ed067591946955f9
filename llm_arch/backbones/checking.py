"""What a directory of a model must not hold, looked at before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llm_arch.locate import locate
from llm_arch.types import UserError
from llm_arch.untrusted import inside, read_json, refuse_links_out, shapes

_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"}
# A pruned model is built dense first: by so many times what its file holds, or by so many numbers, it may be larger.
_DENSE_TIMES, _DENSE_MORE = 64, 2**26


def look_through(directory: Path, *, weights: bool) -> None:
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
    check_config(read_json(directory / "config.json"), directory, layers)


def check_config(values: Any, directory: Path, layers: int | None) -> None:
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
            check_config(value, directory, layers)
        elif name.endswith("_implementation") and "/" in str(value):
            place = directory / "config.json"
            raise UserError(f"{place} names code to fetch and run ({name}: {value}); remove the line")
        elif layers is not None and name in _LAYERS and isinstance(value, int) and value > layers:
            raise ValueError(f"{name} is {value:,} in config.json, but the weights are {layers:,} tensors")


def check_dense(dense: PreTrainedModel, weights: Path) -> None:
    """Raise ValueError where a model before pruning is said to be so large that the file can't be what is left."""
    held = sum(math.prod(shape) for shape in shapes(weights).values())
    said = sum(parameter.numel() for parameter in dense.parameters())
    if said > _DENSE_TIMES * held + _DENSE_MORE:
        raise ValueError(f"{weights.name} holds {held:,} numbers, and is said to be pruned from {said:,}")


def explained(name: str, local: bool, error: Exception) -> str:
    """Why a model can't be loaded, in a sentence that says what to do.

    Args:
        name: what the user gave.
        local: whether it is a directory here.
        error: what transformers raised.
    """
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
