"""The tokenizer that goes with a config's backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_arch.backbones.presets import is_preset
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.locate import locate
from llm_arch.types import UserError


def complete(config: Any, say: Callable[[str], None] = print) -> None:
    """Give the data the backbone's tokenizer, unless it has its own.

    Args:
        config: the parsed command line.
        say: told where another tokenizer is taken than the one that was asked for.

    Raises:
        UserError: there is no data, or its tokenizer is not the backbone's.
    """
    check(config)
    config.data.init_args.tokenizer = _tokenizer(config, say)


def check(config: Any) -> None:
    """Raise UserError where a config has no data."""
    if config.data is None:
        raise UserError("there is no data; start from a config, such as -c task/text_classification")


def _tokenizer(config: Any, say: Callable[[str], None]) -> str | None:
    """What the data is given, else what goes with the backbone; refused where the two do not agree."""
    given, own = config.data.init_args.get("tokenizer"), tokenizer_name(config)
    if given is None or own is None or given == own:
        return given or own
    if given.startswith("trained:"):
        say(f"tokenizer: that of {own}, as the backbone was trained with it")
        return own
    if (Path(locate(own)) / "tokenizer.json").is_file():
        ours, theirs = (load_tokenizer(name).get_vocab() for name in (given, own))
        other = next((token for token, number in theirs.items() if ours.get(token) != number), None)
        if other is not None:
            raise UserError(
                f"data.tokenizer {given} is not the one that the backbone {own} was trained with (they differ in "
                f"the token {other!r}); leave it out, or set it to null, to take the backbone's own"
            )
    return given


def _named(backbone: Any) -> Any:
    """The backbone that a config means: within adapters, what they adapt."""
    while not isinstance(backbone, str) and (inner := backbone.get("init_args", {}).get("backbone")) is not None:
        backbone = inner
    return backbone


def backbone_name(config: Any) -> str | None:
    """What a config calls its backbone: a name, or else a class."""
    backbone = _named(config.model.backbone)
    if isinstance(backbone, str):
        return backbone
    arguments = backbone.get("init_args", {})
    return arguments.get("name") or arguments.get("encoder") or backbone.get("class_path")


def tokenizer_name(config: Any) -> str | None:
    """The tokenizer that goes with the backbone: the one it was given, else what lies beside its weights."""
    backbone = _named(config.model.backbone)
    arguments = {"name": backbone} if isinstance(backbone, str) else backbone.get("init_args", {})
    name = arguments.get("tokenizer") or arguments.get("name") or arguments.get("encoder")
    return None if name is None or is_preset(name) else name
