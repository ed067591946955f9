"""The rounding of ONNX Runtime's dynamic int8: against loops over single numbers, and against its own kernels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_arch.compression.int8 import input_steps, int8_linear, ranges, table_values, weight_steps
from llm_arch.compression.positions import Positions

F = np.float32
NUMBERS = st.floats(-50, 50, width=32) | st.sampled_from([0.0, 1e-30, -1e-30, 0.5, 127.0])


def matrices(rows: int = 5, columns: int = 6) -> st.SearchStrategy[Tensor]:
    sizes = st.tuples(st.integers(1, rows), st.integers(1, columns))
    return sizes.flatmap(
        lambda size: st.lists(NUMBERS, min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
            lambda values: torch.tensor(values, dtype=torch.float32).view(size)
        )
    )


def together(values: Tensor) -> Positions:
    return Positions(torch.zeros(len(values), dtype=torch.long), 1)


def rounded_inputs(values: Tensor) -> Any:
    low, high = ranges(values, together(values))
    return input_steps(values, low.expand(len(values)), high.expand(len(values)))


def naive_inputs(values: Tensor) -> tuple[np.ndarray, np.float32, int]:
    """DynamicQuantizeLinear as the ONNX specification writes it down, a number at a time, in fp32."""
    x = values.numpy()
    low, high = min(F(0), x.min()), max(F(0), x.max())
    scale = F(high - low) / F(255)
    scale = F(1) if scale == 0 else scale
    zero = int(np.rint(min(max(F(0) - low / scale, F(0)), F(255))))
    steps = [[min(max(int(np.rint(value / scale)) + zero, 0), 255) for value in row] for row in x]
    return np.array(steps), scale, zero


# Formulas


@settings(max_examples=50)
@given(matrices())
def test_inputs_are_those_of_the_specification(values: Tensor) -> None:
    steps, scale, zero = naive_inputs(values)
    found = rounded_inputs(values)
    assert np.array_equal(found.numbers.numpy() + zero, steps)
    assert (found.scale.numpy() == scale).all()
    assert (found.values - values).abs().max() <= 1.001 * scale


@settings(max_examples=50)
@given(matrices())
def test_weights_have_a_scale_for_each_output(weight: Tensor) -> None:
    found = weight_steps(weight)
    for row, numbers, scale in zip(weight.numpy(), found.numbers.numpy(), found.scale[:, 0].numpy(), strict=True):
        expected = F(float(np.abs(row).max()) / 127)
        expected = F(1) if expected < np.finfo(F).tiny else expected
        assert scale == expected
        assert numbers.tolist() == [np.rint(value / expected) for value in row]
        assert np.abs(numbers).max() <= 127


@settings(max_examples=50)
@given(matrices())
def test_what_weights_stand_for_has_the_same_numbers(weight: Tensor) -> None:
    first = weight_steps(weight)
    assert torch.equal(weight_steps(first.values).numbers, first.numbers)


def test_each_group_has_its_own_scale_and_padding_none() -> None:
    torch.manual_seed(1)
    values = torch.randn(6, 4) * torch.tensor([1, 1, 9, 9, 9, 50.0])[:, None]
    real = torch.tensor([True, True, True, True, True, False])
    positions = Positions(torch.tensor([0, 0, 1, 1, 1, 1]), 2, real)
    low, high = ranges(values, positions)
    found = input_steps(values, low[positions.group_N], high[positions.group_N]).values
    for rows in (slice(0, 2), slice(2, 5)):
        assert torch.equal(found[rows], rounded_inputs(values[rows]).values)


def test_a_layer_multiplies_whole_numbers() -> None:
    torch.manual_seed(2)
    values, weight, bias = torch.randn(7, 33), torch.randn(5, 33), torch.randn(5)
    steps, scale, zero = naive_inputs(values)
    weights = weight_steps(weight)
    whole = (steps - zero) @ weights.numbers.numpy().astype(int).T
    expected = whole.astype(F) * (scale * weights.scale[:, 0].numpy()) + bias.numpy()
    assert np.array_equal(int8_linear(rounded_inputs(values), weight, bias).numpy(), expected)
    # bf16 holds all whole numbers up to 256: only the product is rounded to it.
    with torch.autocast("cpu", torch.bfloat16):
        half = int8_linear(rounded_inputs(values), weight, None)
    product = torch.tensor(whole, dtype=torch.bfloat16).float() * torch.tensor(scale) * weights.scale[:, 0]
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), product, rtol=2**-7)


@pytest.mark.parametrize("lowest", [-3.0, 0.5, -0.001])
def test_a_table_has_one_scale(lowest: float) -> None:
    torch.manual_seed(3)
    table = torch.rand(9, 4) * 2 + lowest
    low, high = np.float64(min(0.0, float(table.min()))), np.float64(max(0.0, float(table.max())))
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    steps = (np.rint(table.numpy() / F(scale)) + zero).clip(0, 255)
    assert np.array_equal(table_values(table, table).numpy(), ((steps - zero) * F(scale)).astype(F))
    assert torch.equal(table_values(table[[2, 5]], table), table_values(table, table)[[2, 5]])
    assert torch.equal(table_values(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))


# Gradients


def test_gradients_go_straight_through() -> None:
    """As if inputs and weights had been the rounded ones all along."""
    torch.manual_seed(4)
    values, weight, bias = (torch.randn(*size, requires_grad=True) for size in ((6, 8), (3, 8), (3,)))
    outer = torch.randn(6, 3)
    int8_linear(rounded_inputs(values), weight, bias).backward(outer)
    with torch.no_grad():
        expected = outer @ weight_steps(weight).values, outer.T @ rounded_inputs(values).values, outer.sum(0)
    for found, wanted in zip((values, weight, bias), expected, strict=True):
        assert found.grad is not None
        assert torch.allclose(found.grad, wanted, atol=1e-5)


def test_what_is_clipped_has_no_gradient() -> None:
    values = torch.tensor([[-4.0, 0.3, 1.0, 300.0]], requires_grad=True)
    # A range that leaves out two of them: steps of 1, and a zero point of 1.
    steps = input_steps(values, torch.tensor([-1.0]), torch.tensor([254.0]))
    assert steps.values.tolist() == [[-1.0, 0.0, 1.0, 254.0]]
    steps.values.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    table = torch.randn(4, 3, requires_grad=True)
    table_values(table[[1, 1]], table).sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[0.0] * 3, [2.0] * 3, [0.0] * 3, [0.0] * 3]


# ONNX Runtime


def quantized(
    tmp_path: Path, nodes: list[Any], weights: dict[str, Tensor], inputs: list[Any], outputs: list[Any]
) -> Any:
    """A session of a graph, quantized by ONNX Runtime's own tool."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    initializers = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "int8.onnx"
    logging.disable(logging.WARNING)  # it recommends a step before it that changes nothing here
    try:
        quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_layer_is_onnx_runtimes(kind: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    info, make = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    torch.manual_seed(5)
    weight, bias = torch.randn(16, 40), torch.randn(16)
    if kind == "Gemm":
        nodes, stored = [make("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1)], weight
    else:
        nodes, stored = (
            [make("MatMul", ["x", "w"], ["p"], "layer"), make("Add", ["p", "b"], ["y"])],
            weight.T.contiguous(),
        )
    inputs, outputs = [info("x", 1, ["n", 40])], [info("y", 1, ["n", 16])]
    session = quantized(tmp_path, nodes, {"w": stored, "b": bias}, inputs, outputs)
    for factor in (0.01, 1.0, 100.0):
        values = torch.randn(9, 40) * factor + 0.3 * factor
        found = torch.from_numpy(session.run(None, {"x": values.numpy()})[0])
        expected = int8_linear(rounded_inputs(values), weight, bias)
        # Sums of whole numbers are the same; they are scaled in one rounding more or less.
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_table_is_onnx_runtimes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info
    torch.manual_seed(6)
    table, ids = torch.randn(20, 8), torch.tensor([3, 0, 19])
    nodes = [onnx.helper.make_node("Gather", ["w", "i"], ["y"], "look up")]
    session = quantized(tmp_path, nodes, {"w": table}, [info("i", 7, ["n"])], [info("y", 1, ["n", 8])])
    found = session.run(None, {"i": ids.numpy()})[0]
    assert np.array_equal(found, table_values(table, table)[ids].numpy())
