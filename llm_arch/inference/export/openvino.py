"""OpenVINO: model.xml and model.bin, in fp32, with weights of 16 bits, or of 8."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_arch.inference.export import onnx
from llm_arch.inference.export.graph import Graph
from llm_arch.inference.export.runtime import Inputs, Precision, Run, Runtime, need, ran
from llm_arch.untrusted import inside

FILE, WEIGHTS = "model.xml", "model.bin"
_SMALLEST = 2**12  # weights of a matrix that is worth quantizing
_LARGEST_INT8 = 127
# Inputs of a layer that share a scale: the more the faster, but a layer whose inputs can't be divided so runs in fp32.
_GROUPS = (128, 64, 32)


class OpenVino(Runtime):
    """OpenVINO on the CPU."""

    name = "openvino"
    files = (FILE, WEIGHTS)
    refused = {"int8-static": "OpenVINO measures activations with NNCF, which is not used here; take int8, or onnx"}

    def write(self, graph: Graph, folder: Path, precision: Precision, calibration: Sequence[Inputs]) -> None:
        """Write model.xml and model.bin."""
        (openvino,) = need("openvino")
        with tempfile.TemporaryDirectory() as temporary:
            dense = Path(temporary) / onnx.FILE
            onnx.write_fp32(graph, dense, fused=False)
            model = _core().read_model(dense)  # `convert_model` does the same, and tells its makers of it
            if precision == "int8":
                _quantize(model)
            openvino.save_model(model, folder / FILE, compress_to_fp16=precision == "half")

    def open(self, folder: Path, precision: Precision, outputs: Sequence[str]) -> Run:
        """What runs model.xml, on as many threads as torch has; `half` computes in bf16 where the CPU does."""
        need("openvino")
        file, weights = (inside(folder, name, "llm_arch.json") for name in (FILE, WEIGHTS))
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        if precision != "half":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            core = _core()
            model = core.read_model(file, weights)
            if precision == "int8":
                options |= _group(model)
            compiled = core.compile_model(model, "CPU", options)
            request = compiled.create_infer_request()
            places = [compiled.output(name) for name in outputs]
        except Exception as error:
            raise ran(file, error) from error

        def run(inputs: Inputs) -> list[Tensor]:
            try:
                found = request.infer({name: value.contiguous().numpy() for name, value in inputs.items()})
            except Exception as error:
                raise ran(file, error) from error
            return [torch.from_numpy(np.array(found[place], dtype=np.float32)) for place in places]

        return run


@cache
def _core() -> Any:
    """The one of this process, which stays.

    Its plugin for CPUs gives the main thread a stack for signals, and takes it back when it goes: of several that go in
    another order than they came, the last leaves one that is gone, and the next signal ends the process.
    """
    (openvino,) = need("openvino")
    return openvino.Core()


def _group(model: Any) -> dict[str, int]:
    """How many inputs share a scale, as the option that says it; nothing where no number suits all layers."""
    widths = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        scaled = node.input_value(1).get_node()
        if scaled.get_type_name() == "Multiply" and scaled.input_value(0).get_node().get_type_name() == "Convert":
            outputs_first = node.get_attributes()["transpose_b"]
            widths.add(scaled.get_output_partial_shape(0)[1 if outputs_first else 0].get_length())
    suits = [group for group in _GROUPS if all(width % group == 0 for width in widths)]
    return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": suits[0]} if widths and suits else {}


def _quantize(model: Any) -> None:
    """Keep linear layers and embeddings in 8 bits, with a scale for each output or row.

    The runtime rounds the inputs of such layers itself, a position at a time, with a scale for each group of them.
    """
    from openvino import Type, opset13

    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Gather"):
            continue
        place = 1 if kind == "MatMul" else 0
        weight = node.input_value(place).get_node()
        if weight.get_type_name() != "Constant" or weight.get_element_type() != Type.f32:
            continue
        values = weight.data
        if values.ndim != 2 or values.size < _SMALLEST:
            continue
        by_row = kind == "Gather" or bool(node.get_attributes()["transpose_b"])
        scale = np.abs(values).max(axis=1 if by_row else 0, keepdims=True) / _LARGEST_INT8
        scale = np.where(scale == 0, 1.0, scale).astype(np.float32)
        whole = np.clip(np.round(values / scale), -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
        small = opset13.convert(opset13.constant(whole), "f32")
        node.input(place).replace_source_output(opset13.multiply(small, opset13.constant(scale)).output(0))
