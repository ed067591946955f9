"""The directory of a store: what may lie there, one process at a time, and what to say when the disk refuses."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_arch.corpus.plan import difference
from llm_arch.corpus.shards import Store, is_store
from llm_arch.corpus.writer import is_own
from llm_arch.types import UserError

_LOCK = ".lock"  # stays: whoever waits for it holds the file, not the name
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Save a tokenizer; the Rust library's errors become those of Python."""
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def finished(output: Path, plan: dict[str, Any]) -> Store | None:
    """The store that lies there, or None where one may be made."""
    if not is_store(output):
        return None
    store = Store.open(output)
    if store.manifest["plan"] == plan:
        for left in output.glob("*.documents"):  # by a kill between the end of the store and this
            left.unlink()
        return store
    raise UserError(
        f"{output} holds a store with {difference(store.manifest['plan'], plan)}; "
        f"replace it with --overwrite, or name another directory"
    )


@contextmanager
def reserved(output: Path, progress: bool) -> Iterator[None]:
    """The directory for one process at a time: ranks of a training may all ask for the same store."""
    output.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in output.iterdir() if not is_own(path.name) and path.name != _LOCK)
    if foreign:
        raise UserError(f"{output} is not empty and no store: it holds {foreign[0]}; name a directory of its own")
    try:
        lock = FileLock(output / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"waiting for another process, which is writing {output}", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    finally:
        if {path.name for path in output.iterdir()} <= {_LOCK}:  # nothing came of it
            (output / _LOCK).unlink(missing_ok=True)
            output.rmdir()


@contextmanager
def messages(output: Path, command: str) -> Iterator[None]:
    """Says in a sentence why nothing can be written."""
    try:
        yield
    except NotADirectoryError as error:
        raise UserError(f"{output} lies in a file; name a directory") from error
    except FileExistsError as error:
        raise UserError(f"{output} is a file; name a directory") from error
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"{output}: the disk is full ({error.strerror}); finished shards are safe: "
                f"make room, then go on with {command}"
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(f"{output}: it can't be written ({error.strerror}); name another directory") from error
        raise
