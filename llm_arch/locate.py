"""Where a named model or tokenizer lies: a folder, a folder inside an installed package, or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llm_arch.types import UserError


def locate(name: str) -> str:
    """The folder or hub id that `name` stands for.

    Args:
        name: a directory; `package:NAME/FOLDER` for weights that come inside an installed Python package
            (found without importing it); or a hub id such as `bert-base-uncased`, returned unchanged.

    Raises:
        UserError: when the package or its folder, or a path that is clearly meant as a directory, does not exist.
    """
    if name.startswith("package:"):
        package, _, folder = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{name}: the Python package {package!r} is not installed; "
                f"run: pip install {package.replace('_', '-')}, or name a model directory instead"
            )
        root = Path(next(iter(spec.submodule_search_locations))).resolve()
        path = (root / folder).resolve()
        if not path.is_dir() or not path.is_relative_to(root):
            raise UserError(f"{name}: the package {package!r} has no folder {folder!r}")
        return str(path)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise UserError(f"{name} is a file; name the directory that holds config.json, the weights and the tokenizer")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory")
    return name
