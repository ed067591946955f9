"""What `fit` and the verbs that take the same configs and options have in common, up to the parsed command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_arch.cli import configs
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.cli.fit_parser import FitParser


def read(arguments: list[str], base: str | None = None) -> tuple[FitParser, list[str]]:
    """Read configs and options.

    Args:
        arguments: the command line.
        base: a config as JSON, below those that the command line names.

    Returns:
        The parsed command line, and the configs as they were named.

    Raises:
        UserError: a mistake, as one sentence.
    """
    arguments, names, files = find_configs(arguments)
    places = configs.places(files, arguments)
    for value in (argument.partition("=")[2] if "=" in argument else argument for argument in arguments):
        if value.endswith((".yaml", ".yml")) and Path(value).is_file():  # of a group of options, as in --trainer FILE
            configs.read(Path(value))
    from llm_arch.cli.quiet import quiet

    quiet()
    # A head, data format or backbone of the user's own may lie in a file beside them.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))

    from llm_arch.cli.fit_parser import parse

    given = ["--help" if a == "--help-all" else a for a in arguments]
    return parse([*([f"--config={base}"] if base else []), *given], places), names


def trust(modules: Sequence[str]) -> None:
    """Import modules of the user's own, which may lie in files beside them: models that need them are loaded then.

    Raises:
        UserError: there is no such module.
    """
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--trust {name}: it can't be imported ({error}); name a module") from error


def take_trusted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without `--trust MODULE`, which no config can say, and these modules."""
    found: list[str] = []
    modules: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, sign, value = argument.partition("=")
        if flag != "--trust":
            found.append(argument)
            continue
        name = value if sign else next(rest, "")
        if not name or name.startswith("-"):
            raise UserError("--trust needs the name of a module")
        modules.append(name)
    return found, modules


def find_configs(arguments: list[str]) -> tuple[list[str], list[str], list[Path]]:
    """Replace names of shipped configs by their files.

    Args:
        arguments: the command line.

    Returns:
        The command line for the parser, configs first; and the configs in order: as they were named, and their files.

    Raises:
        UserError: when there is no such config.
    """
    found: list[str] = []
    names: list[str] = []
    files: list[Path] = []
    rest = iter(arguments)
    for argument in rest:
        flag, sign, value = argument.partition("=")
        if flag not in ("-c", "--config"):
            found.append(argument)
            continue
        name = value if sign else next(rest, "")
        if not name or name.startswith("-"):
            raise UserError(f"{flag} needs the name of a config, such as -c task/text_classification")
        names.append(name)
        files.append(configs.find(name))
    # A bare switch reads better than a value; the parser wants the value.
    for i, argument in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else ""
        if argument == "--overwrite" and after.lower() not in ("true", "false"):
            found[i] = "--overwrite=true"
    # An option wins over every config, wherever on the line it stands.
    return [*(f"--config={file}" for file in files), *found], names, files
