"""jsonargparse's many-line type errors as one sentence that names the key and what it wants."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

_OPTION = re.compile(r"[Oo]ption '([^']+)'")
_CLASS = re.compile(r"(?:Problem with given class_path|class_path=)\s*'([^']+)'")
_PART = re.compile(r'Parser key "([^"]+)"')
_WANTED = re.compile(r"Expected an? (<class '[^']+'>|[\w.]+\[.*\]|[\w.]+)\.?(?: Got value: (.*))?")
_GIVEN = re.compile(r"(?:Given value|Got value): (.*)")


def explain(message: str, known: Iterable[str]) -> str:
    """One sentence for a parsing error.

    Args:
        message: what jsonargparse said.
        known: all keys that could have been meant, such as `trainer.max_epochs`.
    """
    parts = [part for part in _PART.findall(message) if part != "config"]
    owner = parts[0] if parts else ""
    if message.startswith("unrecognized arguments:"):
        option = message.split(":", 1)[1].split()[0]
        return f"unknown option {option}{_near(option.lstrip('-').split('=')[0], known, '--')}"
    if found := _OPTION.search(message):
        return _unknown(found[1], owner, message, known)
    if "No module named" in message or "can't be imported" in message or "No such class" in message:
        named = _CLASS.search(message) or _GIVEN.search(message)
        name = named[1] if named else ""
        return f"{owner or 'class_path'}: {name} can't be imported; give module and class, such as my_module.MyClass"
    wanted = [_plain(w[0]) for w in _WANTED.findall(message)]
    wanted = [w for w in dict.fromkeys(wanted) if w not in ("NoneType", "path")]
    if wanted:
        key = ".".join(parts)
        given = _GIVEN.findall(message) + [w[1] for w in _WANTED.findall(message) if w[1]]
        value = re.sub(r"^NestedArg\(.*val='?(.*?)'?\)$", r"\1", given[-1].strip()) if given else ""
        return f"{key}: expected {' or '.join(wanted)}, got {value!r}"
    return " ".join(message.split())


def _unknown(option: str, owner: str, message: str, known: Iterable[str]) -> str:
    if group := re.search(r"Group '([^']+)' does not accept", message):
        full = f"{group[1]}.{option}"
        return f"unknown key {full}{_near(full, known)}"
    class_path = _CLASS.search(message)
    if class_path and owner:
        choices = [f"{owner}.{name}" for name in parameters(class_path[1])]
        return f"unknown key {owner}.{option}{_near(f'{owner}.{option}', choices)}"
    return f"unknown key {option}{_near(option, known)}"


def parameters(class_path: str) -> list[str]:
    """The constructor arguments of a class, those it hands to its base classes included."""
    module, _, name = class_path.rpartition(".")
    found: dict[str, None] = {}
    for base in getattr(import_module(module), name).__mro__:
        if "__init__" in vars(base) and base is not object:
            signature = inspect.signature(base.__init__)
            kinds = signature.parameters.values()
            found |= {p.name: None for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in kinds):
                break
    return [name for name in found if name != "self"]


def _near(key: str, known: Iterable[str], dashes: str = "") -> str:
    known = list(known)
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # the mistake may lie in the group: modle.freeze
        near = get_close_matches(key.split(".")[0], sorted({k.split(".")[0] for k in known}), n=1, cutoff=0.6)
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def _plain(kind: str) -> str:
    kind = re.sub(r"<class '([\w.]+)'>", lambda m: m[1].rpartition(".")[2], kind)
    if literal := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return literal[1]
    return kind
