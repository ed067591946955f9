"""Encoded rows on disk: written once, memory-mapped ever after, found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock


def cache_root() -> Path:
    """Where encoded data is kept: `LLM_ARCH_CACHE`, or a folder in the user's cache directory."""
    given = os.environ.get("LLM_ARCH_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_arch"


def key_of(parts: dict[str, Any]) -> str:
    """A name for what is made from these JSON-able parts, the same from run to run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def stored(
    root: Path, key: str, schema: pa.Schema, make: Callable[[dict[str, Any]], Iterator[dict[str, list[Any]]]]
) -> tuple[Dataset, dict[str, Any]]:
    """The rows kept under a key, made first when they are not there.

    Args:
        root: folder of the cache.
        key: name of this content.
        schema: columns and types of the rows.
        make: yields chunks of columns, and fills the dictionary it is given with facts to keep beside the rows.

    Returns:
        The memory-mapped rows, and those facts.
    """
    home = root / key
    root.mkdir(parents=True, exist_ok=True)
    # Ranks of one machine ask for the same rows at once: the first makes them, the others wait.
    with FileLock(root / f"{key}.lock"):
        if not (home / "facts.json").is_file():
            temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=root))
            try:
                facts: dict[str, Any] = {}
                with pa.OSFile(str(temporary / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                    for columns in make(facts):
                        writer.write_table(pa.table(columns, schema=schema))
                (temporary / "facts.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
                shutil.rmtree(home, ignore_errors=True)
                temporary.rename(home)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return Dataset.from_file(str(home / "rows.arrow")), json.loads((home / "facts.json").read_text(encoding="utf-8"))
