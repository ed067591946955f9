"""Files that are either whole and on the disk, or not there under their name."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

PARTIAL = ".partial"


def write(path: Path, parts: Iterable[bytes]) -> str:
    """Write a file all or nothing; returns its sha256."""
    sha = hashlib.sha256()
    with partial(path).open("wb") as file:
        for part in parts:
            sha.update(part)
            file.write(part)
        close(file)
    partial(path).replace(path)
    sync(path.parent)
    return sha.hexdigest()


def array_header(items: int) -> bytes:
    """What a .npy file of so many 64-bit integers begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (items,)})
    return header.getvalue()


def partial(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(path.name + PARTIAL)


def close(file: IO[bytes]) -> None:
    """Close a file once the disk has all of it."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync(directory: Path) -> None:
    """Let the disk have the names in a directory too."""
    with suppress(OSError):  # not every system lets a directory be opened
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
