"""The embedded sets `stdlib:docstrings` and `stdlib:functions`: documentation and code of the Python that runs.

For summarization and for code completion. Files are parsed; nothing is imported or executed.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_arch.corpus.stdlib import library_files
from llm_arch.data.embedded import Embedded, divided
from llm_arch.types import UserError

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Found = tuple[str, Sequence[str], dict[str, Any]]

_BODY_CHARACTERS = 40  # what is shorter does not need a summary
_FUNCTION_LINES, _FUNCTION_CHARACTERS = 12, 600


def embedded(part: str, language: str) -> Embedded:
    """Rows {"source", "target", "name"}, split by module; the name is that of a function or class, with its module.

    Args:
        part: `docstrings`: the source is a docstring without its first line, of 40 characters or more, the target is
            that line. `functions`: the source is a function's signature and docstring, the target its body, of at most
            12 lines and 600 characters; one after the other they are the function as it is written, moved to the left.
        language: not used.

    Raises:
        UserError: unknown part, or this Python has no library of .py files.
    """
    kinds = {"docstrings": _docstring, "functions": _function}
    if part not in kinds:
        raise UserError(f"stdlib:{part}: there is no such set; there are: {', '.join(f'stdlib:{k}' for k in kinds)}")
    files = library_files()
    if not files:
        raise UserError(f"stdlib:{part}: this Python has no library of .py files; name rows of your own")
    return divided(found for path in files for found in _rows(path, kinds[part]))


def _rows(path: Path, kind: Any) -> Iterator[Found]:
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that some release will refuse
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    module = ".".join(path.relative_to(sysconfig.get_path("stdlib")).with_suffix("").parts).removesuffix(".__init__")
    lines = text.split("\n")
    for name, node in _definitions(tree, module):
        pair = kind(node, lines)
        if pair:
            yield module, pair, {"source": pair[0], "target": pair[1], "name": name}


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Functions and classes of a module, and what classes define, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{prefix}.{child.name}"
            yield name, child
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, name)


def _docstring(node: Definition, lines: list[str]) -> tuple[str, str] | None:
    """The body of a docstring and its first line, where that is a sentence or stands alone (PEP 257)."""
    first, _, rest = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").partition("\n")
    body = rest.strip()
    whole = first.endswith((".", "!", "?")) or rest.startswith("\n")
    return (body, first) if first and whole and len(body) >= _BODY_CHARACTERS else None


def _function(node: Definition, lines: list[str]) -> tuple[str, str] | None:
    """A function up to its body, and the body."""
    if isinstance(node, ast.ClassDef) or not ast.get_docstring(node) or len(node.body) < 2:
        return None
    docstring, first, end = node.body[0], node.body[1], node.body[-1].end_lineno
    assert docstring.end_lineno is not None
    assert end is not None
    begin = docstring.end_lineno
    if begin >= first.lineno or docstring.lineno == node.lineno or end - begin > _FUNCTION_LINES:
        return None
    text = textwrap.dedent("\n".join(lines[node.lineno - 1 : end]))
    head = begin - node.lineno + 1
    source, target = ("\n".join(part) for part in (text.split("\n")[:head], text.split("\n")[head:]))
    if not 0 < len(target) <= _FUNCTION_CHARACTERS or not text.startswith(("def ", "async def ")):
        return None
    try:
        ast.parse(text)  # not where a string's lines begin further left than the function
    except SyntaxError:
        return None
    return f"{source}\n", target
