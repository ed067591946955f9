"""Docstrings and functions of the library that runs, against the objects themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from itertools import combinations

import pytest

import llm_arch.data.library as module
from llm_arch.data.embedded import Embedded
from llm_arch.data.embedded import made as made_once
from llm_arch.data.library import embedded
from llm_arch.types import UserError

# Of pure Python and harmless to import.
MODULES = (
    "textwrap",
    "csv",
    "shlex",
    "bisect",
    "statistics",
    "heapq",
    "string",
    "calendar",
    "fractions",
    "json.decoder",
)


@pytest.fixture(scope="module", params=["docstrings", "functions"])
def made(request: pytest.FixtureRequest) -> tuple[str, Embedded]:
    return request.param, made_once("stdlib", request.param, "en")


def test_splits_share_nothing(made: tuple[str, Embedded]) -> None:
    for column in ("source", "target"):
        parts = [{row[column] for row in rows} for rows in made[1].splits.values()]
        assert not any(one & other for one, other in combinations(parts, 2))
    sizes = {split: len(rows) for split, rows in made[1].splits.items()}
    assert sizes["train"] > 1500
    assert min(sizes["validation"], sizes["test"]) > 150


def test_rows_are_what_the_objects_say(made: tuple[str, Embedded]) -> None:
    kind, found = made
    checked = 0
    for row in (row for rows in found.splits.values() for row in rows):
        home = next((name for name in MODULES if row["name"].startswith(f"{name}.")), None)
        if home is None:
            continue
        value = importlib.import_module(home)
        try:
            for part in row["name"].removeprefix(f"{home}.").split("."):
                value = inspect.getattr_static(value, part)
        except AttributeError:
            continue  # deleted, or in a branch that did not run
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        if kind == "docstrings":
            first, _, rest = str(inspect.getdoc(value)).partition("\n")
            assert (row["target"], row["source"]) == (first, rest.strip())
        else:
            lines = inspect.getsource(value).rstrip("\n")
            code = textwrap.dedent(lines)
            assert code[code.index("def ") :].startswith((row["source"] + row["target"])[:-1])
        checked += 1
    assert checked > 20


def test_functions_parse_and_end_in_their_docstring(made: tuple[str, Embedded]) -> None:
    kind, found = made
    for row in (row for rows in found.splits.values() for row in rows):
        if kind == "docstrings":
            assert len(row["source"]) >= 40
            assert "\n" not in row["target"]
            continue
        (function,) = ast.parse(row["source"] + row["target"]).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert function.body[0].end_lineno == row["source"].count("\n")
        assert row["target"].count("\n") < 12
        assert len(row["target"]) <= 600


def test_what_can_not_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^stdlib:x: there is no such set; there are: stdlib:docstrings, stdlib:func"):
        embedded("x", "en")
    monkeypatch.setattr(module, "library_files", list)
    with pytest.raises(UserError, match=r"^stdlib:functions: this Python has no library of \.py files"):
        embedded("functions", "en")
