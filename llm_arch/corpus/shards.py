"""A corpus on disk: documents as token ids in flat files, memory-mapped.

A finished store holds

    manifest.json     what is in it, with checksums; written last
    tokenizer/        the tokenizer that made the ids
    00000.tokens …    the shards: ids of two or four bytes, little-endian, document after document
    starts.npy, lengths.npy, text_bytes.npy, keys.npy   of every document: where in its shard, how long, of what text

and one that is being written a journal instead of the manifest (`writer.py`).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_arch.types import UserError
from llm_arch.untrusted import inside

VERSION = 1
MANIFEST, JOURNAL, TOKENIZER = "manifest.json", "journal.jsonl", "tokenizer"
_TYPES = ("uint16", "uint32")
COLUMNS = ("starts", "lengths", "text_bytes", "keys")


def integer_type(vocabulary: int) -> str:
    """The smaller of uint16 and uint32 that holds every id below `vocabulary`.

    Raises:
        UserError: when neither does.
    """
    for name in _TYPES:
        if vocabulary <= np.iinfo(name).max + 1:
            return name
    raise UserError(f"the tokenizer has {vocabulary:,} ids; a corpus store holds ids of at most 32 bits")


def is_store(path: str | Path) -> bool:
    """Whether a finished corpus store lies there."""
    return (Path(path) / MANIFEST).is_file()


class Store:
    """The documents of a finished store; files are mapped when first read, so it is cheap to send to workers.

    Args:
        directory: where it lies.
        manifest: what `manifest.json` says; `Store.open` reads it and looks whether the files are whole.

    Attributes:
        directory: as given.
        manifest: version, dtype (uint16 or uint32), tokenizer (its fingerprint), vocabulary, documents, tokens, bytes
            (of text, UTF-8), skipped (how many by reason), skipped_first (the first hundred: source, line, reason),
            duplicates, sources, plan (all that the content depends on), shards (each with file, documents, tokens and
            sha256), index (the sha256 of the other files).
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest

    @classmethod
    def open(cls, directory: str | Path, *, tokenizer: Any = None, check: bool = False) -> Store:
        """The store in a directory.

        Args:
            directory: where it lies.
            tokenizer: refuse a store that another tokenizer made; None takes any.
            check: compare all checksums too, which reads every file once.

        Raises:
            UserError: when there is no store, it is half-written, another tokenizer made it, or a file is damaged.
        """
        directory = Path(directory).expanduser()
        manifest = _manifest(directory)
        store = cls(directory, manifest)
        store._sizes()
        if check:
            store.check()
        if tokenizer is not None:
            from llm_arch.data.tokenizers import fingerprint  # here: data imports this module

            if fingerprint(tokenizer) != manifest["tokenizer"]:
                raise UserError(
                    f"{directory} was made with another tokenizer than the one given; "
                    f"use its own, which lies in {directory / TOKENIZER}, or prepare the corpus anew"
                )
        return store

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest}

    @property
    def tokenizer(self) -> Path:
        """The directory of the tokenizer that made the ids."""
        return self.directory / TOKENIZER

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each document; special tokens are not stored."""
        return self._column("lengths")

    @cached_property
    def text_bytes(self) -> NDArray[np.int64]:
        """(N,) UTF-8 bytes of each document's text."""
        return self._column("text_bytes")

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """(N,) a hash of each document's text: equal for equal texts."""
        return self._column("keys")

    def read(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Token ids `start … stop` of a document, counted as slices count; a view of the mapped file, read-only.

        Args:
            document: its number, 0 … N - 1.
            start: the first token.
            stop: the token after the last; None reads to the end.
        """
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of a store of {len(self)}")
        first, last, _ = slice(start, stop).indices(int(self.lengths[document]))
        shard = bisect_right(self._shard_ends, document)
        offset = int(self._starts[document])
        return self._shard(shard)[offset + first : offset + max(first, last)]

    def check(self) -> None:
        """Compare the checksum of every file; raises UserError naming the first that differs."""
        sums = {shard["file"]: shard["sha256"] for shard in self.manifest["shards"]} | self.manifest["index"]
        for name, expected in sums.items():
            with inside(self.directory, name, MANIFEST).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise _damaged(self.directory / name, "its checksum differs from the manifest's")

    def _sizes(self) -> None:
        """Raise UserError where a file is missing or of another size: looks at names alone."""
        width = np.dtype(self.manifest["dtype"]).itemsize
        for shard in self.manifest["shards"]:
            path, expected = inside(self.directory, shard["file"], MANIFEST), shard["tokens"] * width
            size = path.stat().st_size if path.is_file() else None
            if size != expected:
                said = "it is missing" if size is None else f"it has {size:,} bytes instead of {expected:,}"
                raise _damaged(path, said)
        for name in COLUMNS:
            path = inside(self.directory, f"{name}.npy", MANIFEST)
            if not path.is_file() or len(self._column(name)) != len(self):
                raise _damaged(path, "it is missing or of another length")

    @cached_property
    def _shard_ends(self) -> list[int]:
        """The number of the first document behind each shard."""
        return list(accumulate(shard["documents"] for shard in self.manifest["shards"]))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return self._column("starts")

    @cached_property
    def _shards(self) -> dict[int, NDArray[Any]]:
        return {}

    def _shard(self, number: int) -> NDArray[Any]:
        """The ids of a shard, mapped when first asked for."""
        found = self._shards.get(number)
        if found is None:
            dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
            path = self.directory / self.manifest["shards"][number]["file"]
            # A plain array over the map: slices of np.memmap itself are several times slower.
            found = self._shards[number] = np.asarray(np.memmap(path, dtype, mode="r"))
        return found

    def _column(self, name: str) -> NDArray[np.int64]:
        path = self.directory / f"{name}.npy"
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise _damaged(path, "it is not an array") from error


def _manifest(directory: Path) -> dict[str, Any]:
    """What the manifest says."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (directory / JOURNAL).is_file():
            raise UserError(
                f"{directory} is a corpus store that is not finished; go on with {_resume(directory)}"
            ) from None
        raise UserError(
            f"{directory} is no corpus store: it has no {MANIFEST}; make one with llm-arch prepare"
        ) from None
    except NotADirectoryError:
        raise UserError(f"{directory} is a file; a corpus store is a directory, which llm-arch prepare makes") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(directory / MANIFEST, "it is not valid JSON") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise UserError(
            f"{directory} is a store of version {found}, and this release reads version {VERSION}; prepare it anew"
        )
    try:
        if manifest["dtype"] not in _TYPES:
            raise ValueError
        for shard in manifest["shards"]:
            int(shard["documents"]) + int(shard["tokens"])
        int(manifest["documents"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory / MANIFEST, "it does not say what a store's manifest does") from error
    return manifest


def _resume(directory: Path) -> str:
    """The command that finishes a half-written store, as its journal's first line remembers it."""
    try:
        with (directory / JOURNAL).open(encoding="utf-8") as file:
            return str(json.loads(file.readline())["command"])
    except (ValueError, KeyError, TypeError):
        return "the same llm-arch prepare command"


def _damaged(path: Path, said: str) -> UserError:
    return UserError(f"{path} is damaged: {said}; copy it again, or prepare the corpus anew with --overwrite")
