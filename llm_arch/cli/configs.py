"""Where `-c NAME` looks: a file, or one of the configs that come with the package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from llm_arch.types import UserError


def shipped() -> Path:
    """The folder of the shipped configs: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The shipped configs, as `-c` takes them."""
    root = shipped()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path, or a shipped config such as `task/text_classification`.

    Raises:
        UserError: suggesting the nearest shipped name.
    """
    path = Path(name)
    if path.is_file():
        return path
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short in names():
        return shipped() / f"{short}.yaml"
    near = get_close_matches(short, names(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; shipped are: {', '.join(names())}"
    raise UserError(f"{name}: no such config file{hint}")
