"""The embedded corpus: the library of the Python that runs, its source and its documentation.

Nothing is imported or executed: docstrings are read from the syntax tree.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

STDLIB = ("stdlib", "stdlib:source", "stdlib:docs")
# Tests, and what was installed beside the library.
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "_bundled"}
_TOPICS = "pydoc_data/topics.py"  # the language reference, as `help("FORMATTING")` prints it


def library_files() -> list[Path]:
    """The library's .py files in order, without its tests; none where it is packed in an archive."""
    found = []
    for place, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(place, name) for name in names if name.endswith(".py")]
    return sorted(path for path in found if path.is_file())


def documentation(path: str | Path, source: bytes) -> Iterator[str]:
    """The documents that describe a file of the library.

    Args:
        path: the file.
        source: what it holds.

    Yields:
        One document with all docstrings of a module, each under the name it belongs to; or a document a topic of the
        language reference.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that some release will refuse
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    if Path(path).as_posix().endswith(_TOPICS):
        yield from _topics(tree)
        return
    root = Path(sysconfig.get_path("stdlib"))
    place = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(Path(path).name)
    module = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
    parts = [f"{title}\n\n{text}" for title, text in _docstrings(tree, module, "")]
    if parts:
        yield "\n\n".join(parts) + "\n"


def _docstrings(node: ast.AST, title: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Title and docstring of a module, a class or a function, and of what it defines."""
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    text = ast.get_docstring(node, clean=False)
    if text and text.strip():
        yield title, inspect.cleandoc(text)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, child.bases))
            name = f"{prefix}{child.name}"
            yield from _docstrings(child, f"class {name}({bases})" if bases else f"class {name}", f"{name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{prefix}{child.name}({ast.unparse(child.args)})", "")


def _topics(tree: ast.Module) -> Iterator[str]:
    """The values of the dictionary that the module consists of."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            yield from (str(topics[name]) for name in sorted(topics) if str(topics[name]).strip())
