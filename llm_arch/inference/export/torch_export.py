"""torch.export: one .pt2 file, in fp32 or with weights and activations in bfloat16.

Reading such a file is not safe: torch evaluates the sizes in it as Python expressions, and falls back on pickle.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llm_arch.inference.export.graph import Graph
from llm_arch.inference.export.runtime import Inputs, Precision, Run, Runtime, ran
from llm_arch.inference.export.traced import hushed, program
from llm_arch.untrusted import inside

FILE = "model.pt2"


class TorchExport(Runtime):
    """The traced program, run by torch itself."""

    name = "torch"
    files = (FILE,)
    refused = {
        precision: "torch has no fast 8-bit layers on a CPU that need no other package; take onnx or openvino"
        for precision in ("int8", "int8-static")
    }

    def write(self, graph: Graph, folder: Path, precision: Precision, calibration: Sequence[Inputs]) -> None:
        """Write model.pt2."""
        if precision == "half":
            graph = copy.deepcopy(graph).to(torch.bfloat16)
        with hushed():
            torch.export.save(program(graph), folder / FILE)

    def open(self, folder: Path, precision: Precision, outputs: Sequence[str]) -> Run:
        """What runs model.pt2; whoever calls this trusts the file."""
        file = inside(folder, FILE, "llm_arch.json")
        try:
            with hushed():
                module = torch.export.load(file).module()
        except Exception as error:
            raise ran(file, error) from error

        def run(inputs: Inputs) -> Sequence[Tensor]:
            try:
                with torch.no_grad():
                    found = module(*inputs.values())
            except Exception as error:
                raise ran(file, error) from error
            return [found] if isinstance(found, Tensor) else list(found)

        return run
