"""Where a named model or tokenizer lies: a folder, a .gguf file, either inside an installed package, or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llm_arch.types import UserError

_GGUF = ".gguf"


def locate(name: str) -> str:
    """The folder, .gguf file or hub id that `name` stands for.

    Args:
        name: a directory or a .gguf file; the output directory of a run, for the model in it; `package:NAME/FOLDER` or
            `package:NAME/FILE.gguf` for weights that come inside an installed Python package (found without importing
            it); or a hub id such as `bert-base-uncased`, returned unchanged.

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
        if not (path.is_dir() or _is_gguf(path)) or not path.is_relative_to(root):
            kind = "file" if path.suffix == _GGUF else "folder"
            raise UserError(f"{name}: the package {package!r} has no {kind} {folder!r}")
        return str(path)
    path = Path(name).expanduser()
    if path.is_dir() or _is_gguf(path):
        is_run = not (path / "config.json").exists() and (path / "model" / "llm_arch.json").is_file()
        return str(path / "model" if is_run else path)
    if path.is_file():
        raise UserError(f"{name} is a file; name the directory that holds config.json, the weights and the tokenizer")
    if path.suffix == _GGUF:
        raise UserError(f"{name}: no such file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory")
    return name


def for_transformers(place: str) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` of transformers is given to load what lies there: its name, and further arguments.

    Args:
        place: what `locate` returned.

    Raises:
        UserError: it is a .gguf file, and packages that read such files are missing.
    """
    path = Path(place)
    if not _is_gguf(path):
        return place, {}
    absent = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"{place} needs the package {absent[0]} to be read; run: pip install 'llm_arch[gguf]'")
    return str(path.parent), {"gguf_file": path.name}


def _is_gguf(path: Path) -> bool:
    """Whether it is a file of llama.cpp's format: configuration, weights and tokenizer in one."""
    return path.suffix == _GGUF and path.is_file()
