"""Checkpoint files that survive what happens to machines: written whole or not at all, and checked before use.

A checkpoint is a zip archive. Every record in it has a checksum (CRC-32), which torch writes but never checks.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from llm_arch import shards
from llm_arch.types import UserError

PARTIAL = ".partial"  # the suffix of a file that is being written
SUFFIX = ".ckpt"


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits until the disk has it, and then renames it.

    So a file under its own name is always whole, whenever the process or the machine stops, and an older one of that
    name is there until then. Nothing but tensors and plain values is ever read.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; raises a UserError, with nothing left behind, where there is no room."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are local files")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where a write fails
            _remove(partial)
            cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__ or error
            reason = str(cause).splitlines()[0]
            raise UserError(
                f"{path} can't be written ({reason}); make room or name another --output, then go on with "
                "--resume auto: earlier checkpoints are untouched"
            ) from error
        sync_folder(path.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, with all its parts; never runs code from it."""
        return dict(shards.whole(self.load_spread(path, map_location)))

    def load_spread(self, path: str | Path, map_location: Callable[..., Any] | None = None) -> dict[str, Any]:
        """Read a checkpoint whose parts stay where they are until they are asked for (`shards.Spread`)."""
        where = map_location or (lambda storage, location: storage)
        return shards.spread(super().load_checkpoint(path, where, weights_only=True), Path(path).parent)

    def sweep(self, folder: Path) -> None:
        """Remove parts that belong to no checkpoint of a folder any more."""
        shards.sweep(folder, _read, SUFFIX)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint on the CPU, with all its parts; never runs code from it."""
    return dict(shards.whole(shards.spread(_read(Path(path)), Path(path).parent)))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return found


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows of the files that were renamed in a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder may be gone too; the first error is the one to tell
        return


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, as the end of a sentence, or None: all of it is read and checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Torch packs nothing: a record that is packed could grow to any size when it is read.
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                return "is no checkpoint of a run: its records are compressed"
            damaged = archive.testzip()
            if damaged is not None:
                return f"is damaged: the checksum of its record {damaged.rpartition('/')[2]} is wrong"
        found = _read(path)
        if not {"state_dict", "global_step", "epoch"} <= set(found):
            return "is no checkpoint of a run"
        if (named := _builder(found)) is not None:
            return f"names code to build the model with ({named}), which is never run"
        if (fault := shards.fault_of(found, path.parent)) is not None:
            return fault
    except (zipfile.BadZipFile, NotImplementedError) as error:
        return f"is damaged or cut short ({str(error).splitlines()[0]})"
    except UnpicklingError:  # its records are whole, so it is what they say that can't be read
        return "is no checkpoint of a run: it holds more than tensors and plain values, and nothing else is read"
    except Exception as error:  # whatever a pickle can do short of running code, which ends in an error of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"is damaged, or no checkpoint of a run ({reason[:120]})"
    return None


def _builder(found: dict[str, Any]) -> str | None:
    """The function by which Lightning's `load_from_checkpoint`, which is not used here, would build the model."""
    for name in ("hyper_parameters", "datamodule_hyper_parameters"):
        values = found.get(name)
        builder = values.get("_instantiator") if isinstance(values, dict) else None
        if builder is not None and not str(builder).startswith("lightning.pytorch.cli."):
            return str(builder)[:120]
    return None


def step_of(path: Path) -> int:
    """The optimizer steps that a whole checkpoint has behind it."""
    return int(_read(path)["global_step"])


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The whole checkpoint of a run with the most steps behind it, and sentences about those that are damaged.

    Args:
        folder: where the checkpoints lie.
    """
    whole: list[tuple[int, float, Path]] = []
    damaged = []
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
        fault = fault_of(path)
        if fault is None:
            whole.append((step_of(path), path.stat().st_mtime, path))
        else:
            damaged.append(f"{path} {fault}")
    return (max(whole)[2] if whole else None), damaged
