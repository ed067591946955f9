"""Whether a run is at work in a directory: a lock that ends with its process, however that ends.

Two runs in one directory would overwrite each other's checkpoints: a job that was queued again, say, before the first
one had gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from llm_arch.types import UserError

try:
    import fcntl
except ImportError:  # Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]

_NAME = ".running"


class Occupied:
    """A directory that no other process may write a run into.

    Args:
        directory: which is there.

    Raises:
        UserError: a run is at work in it.
    """

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] | None = None
        if fcntl is None:
            return
        try:
            file = (directory / _NAME).open("ab")
        except OSError:  # nothing can be written there, which what is written next will say
            return
        try:
            # Unlike those of flock, such a lock does not live on in the workers that load batches.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(
                f"--output {directory}: a run is at work there; wait for it, stop it, or name another directory"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._file = file

    def leave(self) -> None:
        """Let others in."""
        if self._file is not None:
            Path(self._file.name).unlink(missing_ok=True)
            self._file.close()
            self._file = None


def is_occupied(directory: Path) -> bool:
    """Whether another process is at work in a directory. Its own lock would end by asking."""
    if fcntl is None:
        return False
    try:
        with (directory / _NAME).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False
