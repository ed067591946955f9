"""Where `-c NAME` looks: a file, or one of the configs that come with the package; and what such a file sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from llm_arch.types import UserError

if TYPE_CHECKING:
    from yaml.nodes import Node


_TAG = "tag:yaml.org,2002:"
_PLAIN = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge"}
_MOST_VALUES = 100_000


def shipped() -> Path:
    """The folder of the shipped configs: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The shipped configs, as `-c` takes them."""
    root = shipped()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path, or a shipped config such as `task/text_classification`.

    Raises:
        UserError: suggesting the nearest shipped name.
    """
    path = Path(name)
    if path.is_file():
        return path
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short in names():
        return shipped() / f"{short}.yaml"
    begun = [known for known in names() if short and known.startswith(short)]
    near = begun or get_close_matches(short, names(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; shipped are: {', '.join(names())}"
    raise UserError(f"{name}: no such config file{hint}")


def read(path: Path) -> dict[str, str]:
    """The keys that a config file sets, each with its place: `data.train` → `mine.yaml, line 3`.

    Raises:
        UserError: when it is no YAML mapping of plain values, sets a key twice, or unfolds without end.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not valid UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not valid YAML ({error.problem}); mend the line or the one above") from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for a config") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} is no config: write keys with values, such as `trainer: {{max_epochs: 3}}`")
    _check_plain(root, path)
    return {key: f"{path}, line {line}" for key, line in _keys(root, "", path)}


def _check_plain(root: Node, path: Path) -> None:
    """Raise UserError where a value is to be made an object, or aliases of aliases stand for any number of values."""
    import yaml

    waiting, seen = [root], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > _MOST_VALUES:
            raise UserError(f"{path} unfolds to more than {_MOST_VALUES:,} values; write it without aliases (*name)")
        if node.tag.removeprefix(_TAG) not in _PLAIN:
            tag, line = node.tag.replace(_TAG, "!!"), node.start_mark.line + 1
            raise UserError(f"{path}, line {line}: {tag} is no plain value, and configs hold no other; remove the tag")
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [one for pair in node.value for one in pair]


def _keys(node: Node, prefix: str, path: Path) -> Iterator[tuple[str, int]]:
    """Dotted keys as people write them: without `init_args`, list positions and the `+` of an appended list."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item, prefix, path)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.value in seen:
                raise UserError(f"{path}, line {line}: the key {name.value!r} stands there twice; join the two")
            seen.add(name.value)
            key = prefix if name.value == "init_args" else f"{prefix}.{name.value.removesuffix('+')}".lstrip(".")
            if key != prefix:
                yield key, line
            yield from _keys(value, key, path)


def places(files: Sequence[Path], arguments: Sequence[str]) -> dict[str, str]:
    """Where the config files set each key, later ones winning; keys given on the command line are left out.

    Args:
        files: the config files in order.
        arguments: the command line.
    """
    found: dict[str, str] = {}
    for file in files:
        found |= read(file)
    for argument in arguments:
        if argument.startswith("--"):
            found.pop(argument[2:].partition("=")[0].removesuffix("+").replace(".init_args.", "."), None)
    return found
