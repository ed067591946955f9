"""The sets of rows that installed packages bring: which there are, and how their rows are split. None needs a network.

A new set is one file with a function `embedded(part, language) -> Embedded`, and a line in `SETS`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from llm_arch.types import UserError

SPLITS = ("train", "validation", "test")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Embedded:
    """A set.

    Attributes:
        splits: "train", "validation" and "test", each a list of rows. They share nothing.
        notes: sentences to print, such as what was left out.
    """

    splits: dict[str, Rows]
    notes: list[str] = field(default_factory=list)


class Set(NamedTuple):
    """Where a set comes from: the module that makes it, the packages it reads, and our extra that names these."""

    module: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    part: str = ""  # an example of what must follow its name, as `de` in `gettext:de`
    parts: tuple[str, ...] = ()  # all that may follow, where corpora begin with the same name


SETS = {
    "smart_home": Set("llm_arch.data.smart_home", ("home-assistant-intents", "hassil"), "demo"),
    "gettext": Set("llm_arch.data.catalogues", ("django",), "generation", "de"),
    "chatterbot": Set("llm_arch.data.chatterbot", ("chatterbot-corpus",), "generation", "english"),
    "stdlib": Set("llm_arch.data.library", part="docstrings", parts=("docstrings", "functions")),
}


class Name(NamedTuple):
    """`SET:SPLIT` or `SET:PART:SPLIT`, taken apart; the split is "" where the name is of all of them."""

    set: str
    part: str
    split: str


def is_embedded(name: str) -> bool:
    """Whether a source's name is that of a set, or begins like one."""
    return name.partition(":")[0] in SETS


def brings_splits(name: str) -> bool:
    """Whether a source's name is that of a whole set, with all its splits."""
    first, _, part = name.partition(":")
    if first not in SETS or not SETS[first].part:
        return name in SETS
    return part != "" and ":" not in part and part in (SETS[first].parts or (part,))


def parse(name: str) -> Name:
    """Take the name of a set apart.

    Raises:
        UserError: when what must follow its name is missing, or the split is none.
    """
    first, *rest = name.split(":")
    example = SETS[first].part
    if example and not (rest and rest[0]):
        raise UserError(f"{name}: say which part of it, as in {first}:{example}")
    part, rest = (rest[0], rest[1:]) if example else ("", rest)
    split = ":".join(rest)
    if split and split not in SPLITS:
        raise UserError(f"{name}: the embedded set has the splits {', '.join(SPLITS)}")
    return Name(first, part, split)


@cache
def made(name: str, part: str, language: str) -> Embedded:
    """A set, made once a process for all its splits."""
    found: Embedded = import_module(SETS[name].module).embedded(part, language)
    return found


def made_by(name: str) -> list[str]:
    """The versions that the rows of a set depend on.

    Raises:
        UserError: when one of its packages is not installed.
    """
    try:
        packages = [version(package) for package in SETS[name].packages]
    except PackageNotFoundError as error:
        raise UserError(
            f"the embedded set {name} needs {error.name}; run: pip install 'llm_arch[{SETS[name].extra}]'"
        ) from error
    return [*(packages or [platform.python_version()]), version("llm_arch")]


def package_folder(name: str, package: str) -> Path:
    """The folder of a package that a set reads files of, without importing it.

    Args:
        name: the set, for the error.
        package: as Python imports it.

    Raises:
        UserError: when it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the embedded set {name} needs {package}; run: pip install 'llm_arch[{SETS[name].extra}]'")
    return Path(spec.origin).parent


def divided(rows: Iterable[tuple[str, Sequence[str], dict[str, Any]]]) -> Embedded:
    """Rows in splits of about 8 : 1 : 1.

    Args:
        rows: of each row, the group whose rows go into one split; texts that no other split may have, compared by
            letters and digits alone, without case; and the row. Of rows that are equal in all these texts the first
            is kept; a row with a text that another split has already is left out.
    """
    splits: dict[str, Rows] = {name: [] for name in SPLITS}
    owner: dict[str, str] = {}
    seen: set[tuple[str, ...]] = set()
    shared = 0
    for group, texts, row in rows:
        keys = tuple(_key(text) for text in texts)
        if keys in seen:
            continue
        seen.add(keys)
        drawn = int.from_bytes(hashlib.sha256(_key(group).encode()).digest()[:8]) % 10
        split = {8: "validation", 9: "test"}.get(drawn, "train")
        if any(owner.setdefault(key, split) != split for key in keys):
            shared += 1
            continue
        splits[split].append(row)
    notes = [f"Rows left out because another split has their text: {shared}."] if shared else []
    return Embedded(splits, notes)


def _key(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum()) or text
