"""All that the content of a store depends on: who finds a store by another plan must not go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_arch.corpus.deduplicate import Deduplicate
from llm_arch.corpus.inputs import Part, Unit, fingerprint
from llm_arch.corpus.shards import TOKENIZER
from llm_arch.types import UserError

SHARD_TOKENS = 1 << 25
_DEFAULTS = {"documents": "auto", "column": "text", "deduplicate": "none", "shard_tokens": SHARD_TOKENS}
# What is known by checksums, which tell a person nothing.
_HIDDEN = {"files": "other input files (some were changed, added or removed)", "tokenizer": "another tokenizer"}


def plan_of(
    inputs: Sequence[str],
    parts: Sequence[Part],
    tokenizer: Any,
    documents: Unit,
    column: str,
    deduplicate: Deduplicate,
    shard_tokens: int,
) -> dict[str, Any]:
    """The plan of a store, JSON-able.

    Raises:
        UserError: when a package that it needs is missing.
    """
    from llm_arch.data.tokenizers import fingerprint as fingerprint_of  # here: data imports this package

    plan: dict[str, Any] = {
        "inputs": list(inputs),
        "documents": documents,
        "column": column,
        "deduplicate": deduplicate,
        "shard_tokens": shard_tokens,
        "tokenizer": fingerprint_of(tokenizer),
        "files": fingerprint(parts),
    }
    if deduplicate == "near":
        try:
            plan["rensa"] = version("rensa")
        except PackageNotFoundError:
            raise UserError(
                "near-duplicates are found by rensa, which is not installed; run: pip install 'llm_arch[corpus]'"
            ) from None
    return plan


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first part in which two plans differ, for a sentence about the store of the first one."""
    name = next(name for name in [*theirs, *ours] if theirs.get(name) != ours.get(name))
    return _HIDDEN.get(name, f"{name.replace('_', ' ')} {_shown(theirs.get(name))} instead of {_shown(ours.get(name))}")


def command_of(tokenizer: Any, output: Path, plan: dict[str, Any]) -> str:
    """What a person types to make the store, or to go on making it."""
    name = str(getattr(tokenizer, "name_or_path", "")) or str(output / TOKENIZER)
    options = ["--input", *plan["inputs"], "--tokenizer", name, "--output", str(output)]
    for option, default in _DEFAULTS.items():
        if plan[option] != default:
            options += [f"--{option.replace('_', '-')}", str(plan[option])]
    return shlex.join(["llm-arch", "prepare", *options])


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
