"""A backbone from its name: any transformers model, or a model directory of this project whatever its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llm_arch import model_directory
from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.loading import is_encoder_decoder
from llm_arch.backbones.presets import is_preset
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.locate import locate
from llm_arch.types import Backbone, UserError


def backbone_from(name: str) -> Backbone:
    """The backbone of a directory, hub id, `package:NAME/FOLDER` or preset; of a model directory its backbone alone."""
    if not is_preset(name):
        directory = Path(locate(name))
        if model_directory.is_model_directory(directory):
            record = model_directory.read(directory)["backbone"]
            if "runtime" in record:
                raise UserError(
                    f"{name} is exported and can be neither trained nor compressed; name the model it was exported from"
                )
            return backbone_of(directory, record)
        if is_encoder_decoder(name):
            return EncoderDecoder(name)
    return Pretrained(name)


def backbone_of(directory: Path, record: dict[str, Any], trust: tuple[str, ...] = ()) -> Backbone:
    """The backbone that a model directory's record describes.

    Args:
        directory: the model directory.
        record: its `backbone` entry.
        trust: modules outside this package that may be imported for it.
    """
    try:
        kind = model_directory.resolve(record["class_path"], Backbone, trust)
        backbone = kind.load(directory, record)
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{directory} is damaged or incomplete ({reason}); fetch or train the model again") from error
    assert isinstance(backbone, Backbone)
    return backbone
