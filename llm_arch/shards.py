"""The parts of a checkpoint that several processes write at once, each what it keeps, into files beside it.

The checkpoint itself names them, with their checksums, and is written when all are there. So it is whole under its own
name or not there at all, as one of a single process is, and is read by any number of processes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

FOLDER = "shards"
ENTRY = "shards"  # of a checkpoint: its files
_PLACE = {"shard", "shape"}  # of what stands in a tensor's place
_BLOCK = 1 << 20


class Shards:
    """What one process keeps of the tensors of a checkpoint; all processes have to ask in the same order."""

    def __init__(self) -> None:
        self.local: dict[str, Tensor] = {}

    def put(self, values: Any) -> Any:
        """Nested values with a note in the place of each tensor that is spread, whose share is kept here."""
        if isinstance(values, Mapping):
            return {key: self.put(value) for key, value in values.items()}
        if not isinstance(values, DTensor):
            return values
        assert values.placements == (Shard(0),), values.placements
        name = str(len(self.local))
        self.local[name] = values.to_local().detach().cpu().contiguous()
        return {"shard": name, "shape": list(values.shape)}

    def write(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the shares, and wait until the disk has them.

        Args:
            folder: of the checkpoint.
            name: of the file.

        Returns:
            What the checkpoint says of it.
        """
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.local, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return {"file": name, **_facts(path)}


class Spread:
    """A tensor that lies in the files of a checkpoint, each with some of its rows, read as they are asked for.

    Args:
        files: all of them, in order.
        name: what they call it.
        shape: of all of it.
    """

    def __init__(self, files: Sequence[Any], name: str, shape: Sequence[int]) -> None:
        self._slices = [file.get_slice(name) for file in files]
        self._starts = [0, *accumulate(one.get_shape()[0] for one in self._slices)]
        assert [self._starts[-1], *self._slices[0].get_shape()[1:]] == list(shape)
        self.shape = torch.Size(shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Its rows from one up to another."""
        placed = zip(self._slices, self._starts, self._starts[1:], strict=False)
        parts = [
            one[max(start, first) - first : min(stop, end) - first]
            for one, first, end in placed
            if max(start, first) < min(stop, end)
        ]
        return torch.cat(parts) if parts else self._slices[0][:0]

    def whole(self) -> Tensor:
        """All of it."""
        return self.rows(0, self._starts[-1])


def spread(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A checkpoint with a `Spread` where it has notes.

    Args:
        checkpoint: as it was written.
        folder: where it lies.
    """
    if ENTRY not in checkpoint:
        return checkpoint
    names = [Path(str(one["file"])).name for one in checkpoint[ENTRY]]  # beside it, and nowhere else
    files = [safe_open(folder / FOLDER / name, "pt") for name in names]

    def read(values: Any) -> Any:
        if isinstance(values, dict) and values.keys() == _PLACE:
            return Spread(files, values["shard"], values["shape"])
        if isinstance(values, dict):
            return {key: read(value) for key, value in values.items()}
        return [read(value) for value in values] if isinstance(values, list) else values

    return {key: value if key == ENTRY else read(value) for key, value in checkpoint.items()}


def whole(values: Any) -> Any:
    """Nested values with whole tensors in the place of each `Spread`."""
    if isinstance(values, Spread):
        return values.whole()
    if isinstance(values, dict):
        return {key: whole(value) for key, value in values.items()}
    return [whole(value) for value in values] if isinstance(values, list) else values


def fault_of(checkpoint: Mapping[str, Any], folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, as the end of a sentence, or None; all of them are read."""
    try:
        for one in checkpoint.get(ENTRY, ()):
            path = folder / FOLDER / Path(str(one["file"])).name
            if not path.is_file():
                return f"lacks a part of it, {FOLDER}/{path.name}"
            if _facts(path) != {"bytes": one["bytes"], "crc32": one["crc32"]}:
                return f"has a damaged part: the checksum of {FOLDER}/{path.name} is wrong"
            with safe_open(path, "pt"):
                pass
    except (OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"has a damaged part ({str(error).splitlines()[0][:120]})"
    return None


def sweep(folder: Path, read: Callable[[Path], Mapping[str, Any]], suffix: str) -> None:
    """Remove files that belong to no checkpoint of a folder any more.

    Args:
        folder: of the checkpoints.
        read: reads one.
        suffix: of their names.
    """
    if not (folder / FOLDER).is_dir():
        return
    try:
        kept = {one["file"] for path in folder.glob(f"*{suffix}") for one in read(path).get(ENTRY, ())}
    except Exception:  # one that can't be read may name any of them, and another save will look again
        return
    for path in (folder / FOLDER).iterdir():
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _facts(path: Path) -> dict[str, int]:
    found, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found, size = zlib.crc32(block, found), size + len(block)
    return {"bytes": size, "crc32": found}
