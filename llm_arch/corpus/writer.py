"""Writing a store shard by shard, so that whatever stops it, the same command goes on where the last shard ended.

While it is being written, a store is a journal and the shards that the journal names. Its first line is the plan: what
goes in, and the command. Every other line is one finished shard and the state of the work behind it, written after the
shard's files are on disk under their names: that line is what makes the shard part of the store. All else in the
directory is debris of a kill, and removed when the work goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from llm_arch.corpus.disk import PARTIAL, array_header, close, partial, sync, write
from llm_arch.corpus.plan import difference
from llm_arch.corpus.shards import COLUMNS, JOURNAL, MANIFEST, TOKENIZER, VERSION, Store
from llm_arch.types import UserError

_SHARD = re.compile(r"(\d{5,})\.(tokens|documents)")
_CHUNK = 1 << 16  # documents copied at a time

# What a store is made of: `clear` removes these and nothing else.
_OWN = re.compile(rf"({_SHARD.pattern}|({'|'.join(COLUMNS)})\.npy|manifest\.json|journal\.jsonl)(\.partial)?")


class Writer:
    """A store in the making.

    Args:
        directory: where it shall lie; made where it is missing.
        plan: JSON-able; all that the store's content depends on.
        command: what a person types to go on.
        dtype: uint16 or uint32.
        columns: (≥ 3) numbers kept of each document: tokens, text bytes, key, and what removal of duplicates needs.

    Attributes:
        shards: the records of the finished shards.
        state: what was handed to the last `end_shard`, or None when nothing is finished.
        tokens: of the shard that is being written.

    Raises:
        UserError: when the directory holds a store in the making of another plan.
    """

    def __init__(self, directory: Path, plan: dict[str, Any], command: str, dtype: str, columns: int = 3) -> None:
        self.directory = directory
        self.plan = plan
        self.shards: list[dict[str, Any]] = []
        self.state: dict[str, Any] | None = None
        self.tokens = self._documents = self._bytes = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._columns = columns
        self._sha = hashlib.sha256()
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / JOURNAL).is_file():
            self._go_on()
        else:
            self._remove(lambda name: _OWN.fullmatch(name) is not None)
            header = {"version": VERSION, "plan": plan, "command": command}
            write(directory / JOURNAL, [json.dumps(header, ensure_ascii=False).encode() + b"\n"])

    def add(self, ids: NDArray[Any], documents: NDArray[np.int64]) -> None:
        """Put documents behind those that are there.

        Args:
            ids: (T,) token ids, document after document.
            documents: (N, columns) of each document.
        """
        if not len(documents):
            return
        if self._files is None:
            tokens, index = self._paths(len(self.shards))
            self._files = partial(tokens).open("wb"), partial(index).open("wb")
        raw = ids.astype(self._dtype, copy=False).tobytes()
        self._files[0].write(raw)
        self._files[1].write(documents.astype("<i8", copy=False).tobytes())
        self._sha.update(raw)
        self.tokens += len(ids)
        self._documents += len(documents)
        self._bytes += int(documents[:, 1].sum())

    def end_shard(self, state: dict[str, Any]) -> None:
        """Make what was added since the last call part of the store.

        Args:
            state: JSON-able; where the work stands, for who goes on with it.
        """
        record: dict[str, Any] = {"state": state}
        if self._files is not None:
            paths = self._paths(len(self.shards))
            for file, path in zip(self._files, paths, strict=True):
                close(file)
                partial(path).rename(path)
            record |= {"file": paths[0].name, "documents": self._documents, "tokens": self.tokens}
            record |= {"bytes": self._bytes, "sha256": self._sha.hexdigest()}
            sync(self.directory)
        with (self.directory / JOURNAL).open("ab") as journal:
            journal.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._take(record)
        self._files, self._sha = None, hashlib.sha256()
        self.tokens = self._documents = self._bytes = 0

    def index(self, shard: int) -> NDArray[np.int64]:
        """(N, columns) the documents of a finished shard, memory-mapped."""
        path = self._paths(shard)[1]
        return np.asarray(np.memmap(path, "<i8", mode="r").reshape(-1, self._columns))

    def finish(self, manifest: dict[str, Any]) -> Store:
        """Gather the index, write the manifest and remove the journal; the last shard must be ended.

        Args:
            manifest: what `Store.manifest` says beyond counts and checksums.
        """
        sums = {f"{name}.npy": self._gather(name) for name in COLUMNS}
        for path in sorted((self.directory / TOKENIZER).iterdir()):
            sums[f"{TOKENIZER}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        totals = {name: sum(shard[name] for shard in self.shards) for name in ("documents", "tokens", "bytes")}
        shards = [{name: shard[name] for name in ("file", "documents", "tokens", "sha256")} for shard in self.shards]
        whole = {"version": VERSION, "dtype": str(self._dtype.name)} | totals | manifest
        whole |= {"plan": self.plan, "shards": shards, "index": sums}
        write(self.directory / MANIFEST, [json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n"])
        (self.directory / JOURNAL).unlink()
        self._remove(lambda name: name.endswith(".documents"))
        return Store.open(self.directory)

    def stop(self) -> None:
        """Give back the space of the shard that is being written; the next writer begins it anew."""
        for file in self._files or ():
            with suppress(OSError):  # what is still buffered may not fit on the disk
                file.close()
        self._files = None
        self._remove(lambda name: name.endswith(PARTIAL))

    def _go_on(self) -> None:
        """Read the journal up to its last whole line, and remove what it does not name."""
        path = self.directory / JOURNAL
        with path.open("rb") as file:
            lines = [line for line in file if line.endswith(b"\n")]
        try:
            header = json.loads(lines[0])
            version, plan, command = (header[name] for name in ("version", "plan", "command"))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged; begin anew with --overwrite") from error
        if version != VERSION:
            raise UserError(f"{self.directory} was begun by another release; begin anew with --overwrite")
        if plan != self.plan:
            raise UserError(
                f"{self.directory} holds a half-written store with {difference(plan, self.plan)}; "
                f"finish it with {command}, begin anew with --overwrite, or name another directory"
            )
        os.truncate(path, sum(map(len, lines)))
        for line in lines[1:]:
            self._take(json.loads(line))
        for number, shard in enumerate(self.shards):
            sizes = shard["tokens"] * self._dtype.itemsize, shard["documents"] * self._columns * 8
            for part, size in zip(self._paths(number), sizes, strict=True):
                if not part.is_file() or part.stat().st_size != size:
                    raise UserError(f"{part} is missing or damaged; begin anew with --overwrite")
        self._remove(self._is_debris)

    def _take(self, record: dict[str, Any]) -> None:
        self.state = record.pop("state")
        if record:
            self.shards.append(record)

    def _is_debris(self, name: str) -> bool:
        found = _SHARD.fullmatch(name)
        return name.endswith(PARTIAL) or (found is not None and int(found[1]) >= len(self.shards))

    def _remove(self, which: Callable[[str], bool]) -> None:
        for path in list(self.directory.iterdir()):
            if which(path.name) and path.is_file():
                path.unlink()

    def _paths(self, shard: int) -> tuple[Path, Path]:
        return self.directory / f"{shard:05}.tokens", self.directory / f"{shard:05}.documents"

    def _gather(self, name: str) -> str:
        """Write one number of every document of every shard as one array; returns its checksum."""

        def parts() -> Iterator[bytes]:
            yield array_header(sum(shard["documents"] for shard in self.shards))
            for shard in range(len(self.shards)):
                documents, behind = self.index(shard), 0
                for first in range(0, len(documents), _CHUNK):
                    chunk = documents[first : first + _CHUNK]
                    if name == "starts":
                        ends = behind + np.cumsum(chunk[:, 0])
                        behind = int(ends[-1])
                        yield (ends - chunk[:, 0]).astype("<i8").tobytes()
                    else:
                        yield chunk[:, COLUMNS.index(name) - 1].astype("<i8").tobytes()

        return write(self.directory / f"{name}.npy", parts())


def clear(directory: Path) -> None:
    """Remove a store, finished or not, and nothing else that may lie in its directory."""
    # What says that it is a store goes first: what a kill leaves behind must not look like one.
    for name in (MANIFEST, JOURNAL):
        (directory / name).unlink(missing_ok=True)
    for path in list(directory.iterdir()):
        if is_own(path.name) and path.is_file():
            path.unlink()
    shutil.rmtree(directory / TOKENIZER, ignore_errors=True)


def is_own(name: str) -> bool:
    """Whether a file or folder of that name may be part of a store."""
    return _OWN.fullmatch(name) is not None or name == TOKENIZER
