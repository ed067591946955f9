"""ONNX Runtime: one .onnx file, in fp32 or with 8-bit weights and activations."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from llm_arch.inference.export.graph import Graph
from llm_arch.inference.export.runtime import Inputs, Precision, Run, Runtime, need, ran
from llm_arch.inference.export.traced import hushed, program
from llm_arch.types import UserError
from llm_arch.untrusted import inside

FILE = "model.onnx"
_QUANTIZED = ["MatMul", "Gemm", "Gather"]  # linear layers and embeddings
_LARGEST = 2 * 10**9  # bytes that one such file can hold
_HEAD = "head."
# Adding and normalizing as one node is slower than as two: the one adds up number by number.
_SLOWER = ["SkipLayerNormFusion"]
_made: WeakKeyDictionary[Graph, dict[bool, Any]] = WeakKeyDictionary()  # what graphs became, by `fused`


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    name = "onnx"
    files = (FILE,)
    refused = {"half": "ONNX Runtime computes in fp32 or int8 on a CPU; take int8, or openvino"}
    # It scales the activations of a batch together, so that a neighbour with large ones would coarsen all others.
    alone = frozenset({"int8"})

    def write(self, graph: Graph, folder: Path, precision: Precision, calibration: Sequence[Inputs]) -> None:
        """Write model.onnx."""
        if precision == "fp32":
            write_fp32(graph, folder / FILE)
            return
        need("onnxruntime.quantization")
        with tempfile.TemporaryDirectory() as temporary:
            dense = Path(temporary) / FILE
            write_fp32(graph, dense)
            _quantize(dense, folder / FILE, calibration if precision == "int8-static" else None)

    def open(self, folder: Path, precision: Precision, outputs: Sequence[str]) -> Run:
        """What runs model.onnx, on as many threads as torch has."""
        onnxruntime, onnx = need("onnxruntime", "onnx")
        file = inside(folder, FILE, "llm_arch.json")
        try:
            _check_data(folder, onnx.load(file, load_external_data=False))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except UserError:
            raise
        except Exception as error:  # its own, without a common class
            raise ran(file, error) from error

        def run(inputs: Inputs) -> list[Tensor]:
            try:
                found = session.run(list(outputs), {name: value.contiguous().numpy() for name, value in inputs.items()})
            except Exception as error:
                raise ran(file, error) from error
            return [torch.from_numpy(one) for one in found]

        return run


def write_fp32(graph: Graph, file: Path, *, fused: bool = True) -> None:
    """Write a graph in fp32.

    Args:
        graph: backbone and head, on the CPU.
        file: where it goes.
        fused: whether attention is the one node that ONNX Runtime alone has for it.

    Raises:
        UserError: it is too large for one file, can't be traced, or does what ONNX has no name for.
    """
    need("onnx", "onnxscript")
    made = _made.setdefault(graph, {})
    if fused not in made:
        made[fused] = _as_onnx(graph, fused)
    made[fused].save(str(file))


def _as_onnx(graph: Graph, fused: bool) -> Any:
    from llm_arch.inference.export.onnx_attention import translations

    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    if size > _LARGEST:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB of weights, and an .onnx file holds 2 GB; "
            "export it to torch, or compress it first"
        )
    traced = program(graph)
    try:
        with torch.no_grad(), hushed():
            return torch.onnx.export(
                traced,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamo=True,
                verbose=False,
                custom_translation_table=translations(fused),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(_lacking(graph, error)) from error


def _lacking(graph: Graph, error: BaseException) -> str:
    """What is said when torch can't write a graph as ONNX."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    operator = re.search(r"No ONNX function found for .*op='([\w.]+)'", str(cause))
    reason = (
        f"ONNX has nothing for {operator[1]}" if operator else (str(cause).strip().splitlines() or ["no reason"])[0]
    )
    return (
        f"{type(graph.backbone).__name__} with {type(graph.head).__name__} can't be written as ONNX ({reason[:200]}), "
        "which OpenVINO reads too; export it to torch"
    )


def _quantize(dense: Path, file: Path, calibration: Sequence[Inputs] | None) -> None:
    """8-bit linear layers and embeddings; the head, which is small and last, stays as it is.

    Args:
        dense: a file in fp32.
        file: where the other goes.
        calibration: inputs whose activations set fixed scales; None for scales of each call.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(dense)
    add_pre_process_metadata(model)  # or a hint to optimise first is logged, which changes nothing here
    constant = {one.name for one in model.graph.initializer}
    # A Gemm is split first, and its product has a name of its own.
    stay = [node.name for node in model.graph.node if _stays(node, constant)]
    kept = [*stay, *(f"{name}_MatMul" for name in stay)]
    common: dict[str, Any] = {
        "op_types_to_quantize": _QUANTIZED,
        "nodes_to_exclude": kept,
        "per_channel": True,
        "weight_type": quantization.QuantType.QInt8,
    }
    with hushed():
        if calibration is None:
            quantization.quantize_dynamic(model, file, **common)
        else:
            reader = _Reader(iter(calibration))
            quantization.quantize_static(model, file, reader, activation_type=quantization.QuantType.QUInt8, **common)


def _stays(node: Any, constant: set[str]) -> bool:
    """Whether a node keeps its precision: one of the head, or one without weights."""
    if node.op_type not in _QUANTIZED:
        return False
    weights = [name for name in node.input if name in constant]
    return not weights or any(name.startswith(_HEAD) for name in weights)


class _Reader:
    """Calibration rows as ONNX Runtime asks for them: one after another, then None."""

    def __init__(self, rows: Iterator[Inputs]) -> None:
        self.rows = rows

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.rows, None)
        return None if row is None else {name: value.numpy() for name, value in row.items()}

    def __iter__(self) -> _Reader:
        return self


def _check_data(folder: Path, model: Any) -> None:
    """Raise UserError where a model keeps weights in a file outside its folder."""
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                inside(folder, entry.value, FILE)


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors anywhere in a model: initializers, constants, those of functions and of branches."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if _repeated(field) else [value]:
                yield from _tensors(one)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
