"""Attention as it is written into ONNX files, against torch's own, for sizes that it was not traced with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llm_arch.inference.export.traced import hushed

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

HEADS, SIZE = 4, 8


class Attention(nn.Module):
    """Heads cut out of rows, and put together again, as models do; with a mask, one row of one, and other ways."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, few: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        query, key, value, few = (x.view(*x.shape[:2], -1, SIZE).transpose(1, 2) for x in (query, key, value, few))
        bias = torch.where(mask[:, None], 0.5, float("-inf"))
        found = (
            scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None]),
            scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.2),
            scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, :1]),
            scaled_dot_product_attention(query, key, value, is_causal=True),
            scaled_dot_product_attention(query, few, few, attn_mask=mask[:, None], enable_gqa=True),
        )
        return tuple(out.transpose(1, 2).flatten(2) for out in found)


NAMES = ("query", "key", "value", "few", "mask")


def inputs(count: int, length: int) -> list[Tensor]:
    widths = [HEADS * SIZE] * 3 + [HEADS // 2 * SIZE]
    mask = torch.rand(count, length, length) > 0.4
    mask[:, :, 0] = True
    return [*(torch.randn(count, length, width) for width in widths), mask]


@pytest.fixture(scope="module")
def traced() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    count, length = torch.export.Dim("count"), torch.export.Dim("length")
    sizes = [{0: count, 1: length}] * 4 + [{0: count, 1: length, 2: length}]
    return torch.export.export(Attention().eval(), tuple(inputs(2, 9)), dynamic_shapes=tuple(sizes))


@pytest.mark.parametrize("fused", [True, False])
def test_is_torchs(traced: torch.export.ExportedProgram, fused: bool, tmp_path: Path) -> None:
    from llm_arch.inference.export.onnx_attention import translations

    with hushed():
        made = torch.onnx.export(
            traced, input_names=NAMES, dynamo=True, verbose=False, custom_translation_table=translations(fused)
        )
    assert made is not None
    made.save(str(tmp_path / "model.onnx"))
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("MultiHeadAttention") == (5 if fused else 0)
    assert nodes.count("Softmax") == (0 if fused else 5)
    assert "IsNaN" not in nodes
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count, length in ((3, 13), (1, 4)):
        given = inputs(count, length)
        wanted = Attention()(*given)
        found = session.run(None, {name: one.numpy() for name, one in zip(NAMES, given, strict=True)})
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-5, atol=1e-5)
        # A row that attends to nothing stays a number, and touches no other.
        given[-1][:, -1] = False
        again = session.run(None, {name: one.numpy() for name, one in zip(NAMES, given, strict=True)})
        assert all(np.isfinite(one).all() for one in again)
        assert np.array_equal(again[0][:, :-1], found[0][:, :-1])
