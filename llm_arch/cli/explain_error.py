"""jsonargparse's many-line type errors as one sentence that names the key and what it wants."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module

from llm_arch.types import UserError

_OPTION = re.compile(r"[Oo]ption '([^']+)'")
_CLASS = re.compile(r"(?:Problem with given class_path|class_path=)\s*'([^']+)'")
_PART = re.compile(r'Parser key "([^"]+)"')
_WANTED = re.compile(r"Expected (?:an? )?(<class '[^']+'>|[\w.]+\[.*\]|[\w.]+)\.?")
_GIVEN = re.compile(r"(?:Given value|Got value): (.*?)(?=\. Got value: |\n|$)")
_NESTED = re.compile(r"NestedArg\(key='(.*?)', val='?(.*?)'?\)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_IMPORT = re.compile(r"No module named '[^']+'|module '[^']+' has no attribute '[^']+'|cannot import name .*")
_SEVERAL = re.compile(r"Multiple subclasses with name (\w+)\..*?ambiguity: (\w[\w.]*(?:, \w[\w.]*)*\w)")
_WRONG_CLASS = re.compile(r"(?:Expected '([^']+)' to be a subclass of <class '(\w+)'>|Not a valid subclass of (\w+))")

_PLAIN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "Sequence": "a list",
    "dict": "a mapping",
}
_TRUTHS = ("True", "False")
# What jsonargparse also would have taken, but nobody who made the mistake has meant.
_NOT_MEANT = ("NoneType", "path", "dot")


def explain(
    message: str,
    known: Iterable[str],
    places: Mapping[str, str] | None = None,
    kinds: Mapping[str, type] | None = None,
) -> str:
    """One sentence for a parsing error.

    Args:
        message: what jsonargparse said.
        known: all keys that could have been meant, such as `trainer.max_epochs`.
        places: where a config file sets a key, such as `mine.yaml, line 3`; put before the sentence about that key.
        kinds: the class that a key takes, to suggest the nearest of its subclasses.
    """
    key, sentence = _explain(message, list(known), kinds or {})
    place = (places or {}).get(key)
    return f"{place}: {sentence}" if place else sentence


def _explain(message: str, known: list[str], kinds: Mapping[str, type]) -> tuple[str, str]:
    if message.startswith("unrecognized arguments:"):
        option = message.split(":", 1)[1].split()[0]
        if not option.startswith("-"):
            return "", f"unexpected argument {option!r}; every value follows an option, such as --output DIR"
        return "", f"unknown option {option}{_near(option.lstrip('-').split('=')[0], known, '--')}"
    if lacking := re.match(r"argument ([^:]+): expected one argument", message):
        return "", f"{lacking[1].split('/')[-1]} needs a value; see llm-arch fit --help"
    if lacking := re.match(r"the following arguments are required: (.*)", message):
        return "", f"{lacking[1]} must be given; start from a config, such as -c task/text_classification"
    parts = [part for part in _PART.findall(message) if part != "config"]
    owner = parts[0] if parts else ""
    if group := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        key = f"{group[1]}.{group[2]}"
        return key, f"unknown key {key}{_near(key, known)}"
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message) or _OPTION.search(message):
        return _unknown(found[1], owner, message, known)
    if " is abstract" in message or "must include a class_path" in message:
        return owner, (
            f"nothing has said yet which class {owner} is (class_path); begin with a config that does, "
            "such as -c task/text_classification, and put overlays and options after it"
        )
    if owner == "model.label_space":
        return owner, "model.label_space comes from the data; leave it out, or list the names under data.labels"
    if found := _NO_CLASS.search(message) or _CLASS.search(message) or _GIVEN.search(message):
        if nested := _NESTED.search(message) if _NO_CLASS.search(message) else None:
            key = f"{owner}.{nested[1]}"
            return key, (
                f"{key} can't be set, since {owner} is {found[1]!r} and takes no arguments; "
                f"name a class with {owner}.class_path first"
            )
        trouble = _class_trouble(found[1], owner, message, kinds.get(owner))
        if trouble:
            return owner, trouble
    return _wrong_value(".".join(parts), message)


def _unknown(option: str, owner: str, message: str, known: list[str]) -> tuple[str, str]:
    class_path = _CLASS.search(message)
    if not (class_path and owner):
        return option, f"unknown key {option}{_near(option, known)}"
    key = f"{owner}.{option}"
    if class_path[1] == "torch.optim.Optimizer":
        return key, f"{key} belongs to an optimizer; name it first, as in --model.optimizer AdamW"
    choices = [f"{owner}.{name}" for name in parameters(class_path[1])]
    if key in choices:  # it is its value that the class refuses
        kind = class_path[1].rpartition(".")[2]
        return key, f"{key} can't be this of {kind}; of several in a list, an option is for the last one"
    return key, f"unknown key {key}{_near(key, choices) or f'; {class_path[1]} takes {_listed(class_path[1])}'}"


def _class_trouble(name: str, owner: str, message: str, kind: type | None) -> str | None:
    """Why a class can't be used, or None when the message is about something else."""
    if several := _SEVERAL.search(message):
        return (
            f"{owner}: several classes are called {several[1]}; give the whole path: {several[2].replace(', ', ' or ')}"
        )
    if wrong := _WRONG_CLASS.search(message):
        return f"{owner}: {wrong[1] or name} is no {wrong[2] or wrong[3]}; name a class that is one"
    reason = _NO_IMPORT.search(message)
    if not (reason or _NO_CLASS.search(message) or "can't be imported" in message):
        return None
    module = name.rpartition(".")[0]
    if reason and reason[0].startswith(("No module", "cannot")) and not module.startswith(reason[0].split("'")[1]):
        return f"{owner}: {name} can't be imported: {reason[0]}; install what it needs, or mend the module"
    near = get_close_matches(name.rpartition(".")[2], _subclasses(kind), n=1, cutoff=0.6) if kind else []
    if near:
        return f"{owner}: found no class {name}; did you mean {near[0]}?"
    return f"{owner}: {name} can't be imported; give module and class, such as my_module.MyClass"


def _wrong_value(key: str, message: str) -> tuple[str, str]:
    wanted = [w for w in dict.fromkeys(_WANTED.findall(message)) if _short(w) not in _NOT_MEANT]
    if not wanted:
        return key, " ".join(message.split())
    given = _GIVEN.search(message)
    value = given[1].strip() if given else ""
    if nested := _NESTED.fullmatch(value):
        value = nested[2]
    choices = [c for w in wanted for c in _choices(w)]
    if len(choices) == len(wanted) or all(_choices(w) for w in wanted):
        near = get_close_matches(value, choices, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return key, f"{key}: {value!r} is none of {', '.join(choices)}{hint}"
    expected = [c for w in wanted for c in _choices(w) or [_PLAIN.get(_short(w), _short(w))]]
    alternatives = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
    quote = "; quote it, since YAML reads yes, no, on and off so" if "text" in expected and value in _TRUTHS else ""
    return key, f"{key}: expected {alternatives}, got {value!r}{quote}"


def constructor_error(error: BaseException) -> str:
    """What a constructor said about its arguments, without what jsonargparse wrapped around it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError):
        found = found.__cause__ or found.__context__
    if found is None:
        found = error
        while found.__cause__ is not None and str(found).startswith(
            ("Does not validate", "Parser key", "Problem with")
        ):
            found = found.__cause__
    return " ".join(str(found).split())


def parameters(class_path: str) -> list[str]:
    """The constructor arguments of a class, those it hands to its base classes included."""
    module, _, name = class_path.rpartition(".")
    return parameters_of(getattr(import_module(module), name))


def parameters_of(kind: type) -> list[str]:
    """As `parameters`, for a class at hand."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            arguments = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            found |= {p.name: None for p in arguments if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in arguments):
                break
    return [name for name in found if name != "self"]


def _listed(class_path: str) -> str:
    names = parameters(class_path)
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "no arguments"


def _near(key: str, known: list[str], dashes: str = "") -> str:
    """The key that was meant: in its own group, else of nearly that name in another, else in a group of that name."""
    group, _, leaf = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == group}
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for leaves, cutoff in ((beside, 0.6), (elsewhere, 0.8)):
        near = get_close_matches(leaf, leaves, n=1, cutoff=cutoff)
        if near:
            return f"; did you mean {dashes}{leaves[near[0]]}?"
    first, dot, rest = key.partition(".")
    groups = get_close_matches(first, sorted({k.split(".")[0] for k in known}), n=1, cutoff=0.6)
    return f"; did you mean {dashes}{groups[0]}{dot}{rest}?" if groups and groups[0] != first else ""


def _subclasses(kind: type) -> list[str]:
    below: list[str] = []
    direct: type
    for direct in type.__subclasses__(kind):
        below += [direct.__name__, *_subclasses(direct)]
    return sorted({name for name in below if not name.startswith("_")})


def _short(kind: str) -> str:
    return re.sub(r"<class '([\w.]+)'>", r"\1", kind).split("[")[0].rpartition(".")[2]


def _choices(kind: str) -> list[str]:
    literal = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind)
    return [choice.strip("'\"") for choice in literal[1].split(", ")] if literal else []
