"""Reading what somebody else wrote: names stay in their folder, and sizes are believed where a file bears them out.

What the readers of JSON and safetensors leave open is closed here: nesting without end, names of other files, links out
of the folder, and configurations that claim more than there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, isfinite

from llm_arch.types import UserError

LARGEST_JSON = 256 * 2**20  # bytes; the largest tokenizers take 40 MB


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        OSError: it can't be read.
        ValueError: it is larger than `LARGEST_JSON` bytes, nested without end, or no JSON; says why, for a sentence.
    """
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path.name} has {size:,} bytes, far more than any such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {str(error).splitlines()[0][:120]}") from error


def inside(folder: Path, name: Any, named_by: str) -> Path:
    """The file of a folder that another of its files names.

    Args:
        folder: the folder.
        name: as it is named, a relative path.
        named_by: who names it, for the message.

    Raises:
        UserError: the name, or a link of that name, leads out of the folder.
    """
    if not isinstance(name, str) or not name or not _stays(folder, folder / name):
        raise UserError(f"{folder / named_by} names a file outside the folder: {name!r}; nothing there is read")
    return folder / name


def refuse_links_out(folder: Path) -> None:
    """Raise UserError where a file of a folder is a link to somewhere else."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not _stays(folder, path):
            raise UserError(f"{path} is a link out of its folder, which is not followed; copy the file there instead")


def _stays(folder: Path, path: Path) -> bool:
    home, end = folder.resolve(), path.resolve()
    # A snapshot in the hub's cache is a folder of links to the blobs beside it.
    return end.is_relative_to(home) or (home.parent.name == "snapshots" and end.parent == home.parent.parent / "blobs")


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file, from its header alone.

    Raises:
        OSError: it can't be read.
        SafetensorError: it is no such file, or its header does not fit it.
    """
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def check_shapes(path: Path, wanted: Mapping[str, tuple[int, ...]], configured_by: str) -> None:
    """Raise ValueError, as a reason for a sentence, where a tensor is of another shape than the configuration says.

    Args:
        path: a safetensors file.
        wanted: the shape of each tensor by name; what the file has beyond or lacks is not looked at.
        configured_by: the file that says so, for the message.
    """
    for name, found in shapes(path).items():
        if (expected := wanted.get(name, found)) != found:
            raise ValueError(f"{name} is {_shown(found)} in {path.name}, but {_shown(expected)} by {configured_by}")


def check_finite(weights: Mapping[str, Tensor], place: str) -> None:
    """Raise UserError, naming the tensor, where a weight is NaN or infinite."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not isfinite(tensor).all():
            raise UserError(f"{place} holds weights that are not finite ({name}); whatever wrote it went wrong")


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
