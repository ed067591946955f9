"""Every notebook runs from top to bottom, offline, in a few steps, and defines nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What the kernel runs first: what a run needs is imported, and then takes few steps on few batches, and documentation
# is that of few files. A model that is loaded by name has its last layers alone.
BEFORE = """
import gc
gc.disable()
import llm_arch.data, llm_arch.interpret, matplotlib.pyplot
from llm_arch.corpus import inputs
from llm_arch.task import Task
from llm_arch.trainer import Trainer

def briefly(self, *, whole=Trainer.__init__, **options):
    few = {"limit_val_batches": 1, "limit_test_batches": 1}
    whole(self, **{**options, **few, "max_steps": 3 if options.get("max_epochs") != 0 else -1})

def shallow(self, backbone, *given, whole=Task.__init__, **options):
    fewer = {"keep_layers": 2} if str(backbone).startswith("package:") else {}
    whole(self, backbone, *given, **{**fewer, **options})

Trainer.__init__ = briefly
Task.__init__ = shallow
gc.freeze()  # what is imported is no garbage, and need not be looked through each time
gc.enable()
inputs.library_files = lambda files=inputs.library_files()[::8]: files
"""
# What it runs before each of them: where it works, and that nothing is defined.
FRESH = """
%reset -f
import os; os.chdir({folder!r}); del os
"""


def source_of(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.fixture(scope="module")
def client() -> Iterator[NotebookClient]:
    """A kernel for all notebooks, since it takes seconds to import what they need."""
    cell = nbformat.v4.new_code_cell(BEFORE)
    # The kernel is the interpreter of this test: the name of its specification is that of ipykernel itself.
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=300, kernel_name="python3")
    with client.setup_kernel():
        client.execute_cell(cell, 0)
        yield client


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, client: NotebookClient, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FRESH.format(folder=str(tmp_path))))
    client.nb = notebook
    client.reset_execution_trackers()
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)
    assert any(cell.get("outputs") for cell in notebook.cells[1:])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_only_calls(path: Path) -> None:
    for source in source_of(path):
        defined = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert defined == [], source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_kept(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
