"""What all runtimes share: how they are named, and what writes and opens their files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from torch import Tensor

from llm_arch.inference.export.graph import Graph
from llm_arch.types import UserError

Precision = Literal["fp32", "half", "int8", "int8-static"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "half", "int8", "int8-static")
Inputs = Mapping[str, Tensor]
Run = Callable[[Inputs], Sequence[Tensor]]


class Runtime(ABC):
    """Writes a graph as a file of its own kind, and runs such files.

    Attributes:
        name: as `--to` and the record of a model directory name it.
        files: what it writes into the folder.
        refused: why it does not do a precision, in half a sentence, by precision.
        alone: precisions in which a sequence's logits would depend on what it is batched with.
    """

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    refused: ClassVar[Mapping[Precision, str]] = {}
    alone: ClassVar[frozenset[Precision]] = frozenset()

    @abstractmethod
    def write(self, graph: Graph, folder: Path, precision: Precision, calibration: Sequence[Inputs]) -> None:
        """Write the files.

        Args:
            graph: backbone and head, on the CPU.
            folder: where they go.
            precision: one that is not refused.
            calibration: inputs of the rows that a static quantization measures.
        """

    @abstractmethod
    def open(self, folder: Path, precision: Precision, outputs: Sequence[str]) -> Run:
        """What runs the file in a folder: inputs by name → the outputs.

        Raises:
            UserError: the file is missing, damaged, or reaches out of its folder.
        """


RUNTIMES: dict[str, tuple[str, str]] = {
    "onnx": ("llm_arch.inference.export.onnx", "OnnxRuntime"),
    "torch": ("llm_arch.inference.export.torch_export", "TorchExport"),
    "openvino": ("llm_arch.inference.export.openvino", "OpenVino"),
}


def runtime_of(name: Any) -> Runtime:
    """The runtime of that name, imported only now.

    Raises:
        UserError: there is none.
    """
    if not isinstance(name, str) or name not in RUNTIMES:
        raise UserError(f"there is no runtime {name!r}; take one of {', '.join(RUNTIMES)}")
    module, kind = RUNTIMES[name]
    found = getattr(import_module(module), kind)()
    assert isinstance(found, Runtime)
    return found


def need(*names: str) -> list[ModuleType]:
    """Import packages of the extra `export`.

    Raises:
        UserError: one is missing.
    """
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        missing = error.name or names[0]
        raise UserError(f"this needs {missing}; install it with: pip install 'llm_arch[export]'") from error


def ran(file: Path, error: Exception) -> UserError:
    """What is said when a file can't be opened or run."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{file} can't be run ({reason[:200]}); export the model again")
