"""Models that round as in int8: each sequence as if alone, nothing else changed, and the numbers of ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_arch.backbones.adapters import Adapted
from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.compression.fake_quantization import FakeQuantization
from llm_arch.compression.int8 import table_values
from llm_arch.compression.quantization import fake_quantized, int8_difference
from llm_arch.compression.structure import Structure
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.types import Batch, LabelSpace, UserError

LENGTHS = (9, 1, 5, 14)
KINDS = ["bert", "gpt2", "modernbert", "llama"]


@pytest.fixture
def model(make_backbone: Callable[..., Pretrained]) -> Callable[..., tuple[Any, Any]]:
    def make(kind: str, head: Any = SequenceClassification, **options: Any) -> tuple[Any, Any]:
        body = make_backbone(kind, **options)
        top = head(body.hidden_size, LabelSpace(() if head is LanguageModel else ("a", "b", "c"))).eval()
        top.bind(body)
        return body, top

    return make


def by_hand(batch: Batch, backbone: Any) -> Tensor:
    """Layers as functions of one sequence, with values that are rounded one after another."""
    handles = []

    def inputs(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = given[0]
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = (high - low) / 255
        zero = (-low / scale).round()
        return (((x / scale).round() + zero).clamp(0, 255).sub(zero).mul(scale),)

    for module in backbone.modules():
        with torch.no_grad():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
            elif isinstance(module, Conv1D):
                scale = module.weight.abs().amax(0, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
            elif isinstance(module, nn.Embedding):
                module.weight.copy_(table_values(module.weight, module.weight))
        if isinstance(module, nn.Linear | Conv1D):
            handles.append(module.register_forward_pre_hook(inputs))
    return backbone(batch).last_TD


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_rounds(model: Callable[..., Any], labelled: Callable[..., Batch], kind: str) -> None:
    backbone, head = model(kind)
    batch = labelled((9,))
    with torch.no_grad():
        plain = backbone(batch).last_TD
        with fake_quantized(backbone, head) as found:
            rounded = backbone(batch).last_TD
        assert found["linear"] == sum(isinstance(m, nn.Linear | Conv1D) for m in backbone.modules())
        expected = by_hand(batch, copy.deepcopy(backbone))
    # Where a value lies between two steps, the one or the other: less than rounding itself does.
    assert (rounded - expected).abs().max() < 0.2 * (rounded - plain).abs().max()
    assert (rounded - expected).abs().median() < 1e-5


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_sequence_as_if_alone(
    model: Callable[..., Any], labelled: Callable[..., Batch], kind: str, layout: str
) -> None:
    backbone, head = model(kind, layout=layout)
    # Sequences whose states are of very different size.
    with torch.no_grad(), fake_quantized(backbone, head):
        for padded in (False, True):
            batch = labelled(LENGTHS, padded=padded)
            together = head(backbone(batch), batch)
            alone = [labelled((length,), first=number) for number, length in enumerate(LENGTHS)]
            single = torch.cat([head(backbone(one), one) for one in alone])
            assert torch.allclose(together, single, atol=2e-3 * float(single.abs().max()))
            assert (together - single).abs().median() < 1e-5


def test_a_tied_head_takes_the_embeddings_rounded(model: Callable[..., Any], labelled: Callable[..., Batch]) -> None:
    backbone, head = model("gpt2", head=LanguageModel)
    batch = labelled((9, 4))
    assert head.weight is None
    with fake_quantized(backbone, head):
        table = head.projection
        assert torch.equal(table, table_values(backbone.embeddings.weight, backbone.embeddings.weight))
        assert torch.equal(backbone.embeddings(torch.arange(5)), table[:5])
        head.logits(backbone(batch).last_TD).square().mean().backward()
    assert head.projection is backbone.embeddings.weight
    assert backbone.embeddings.weight.grad is not None
    assert int((backbone.embeddings.weight.grad != 0).any(1).sum()) == len(backbone.embeddings.weight)
    with fake_quantized(backbone, head, embeddings=False):
        assert head.projection is backbone.embeddings.weight


def test_nothing_else_changes(model: Callable[..., Any], labelled: Callable[..., Batch]) -> None:
    backbone, head = model("gpt2")
    batch = labelled()
    names = [name for name, _ in backbone.named_parameters()]
    parameters, state = list(backbone.parameters()), {k: v.clone() for k, v in backbone.state_dict().items()}
    plain = head(backbone(batch), batch)
    rounding = FakeQuantization()
    rounding.attach(backbone, head)
    assert rounding.attached
    rounded = head(backbone(batch), batch)
    assert not torch.equal(rounded, plain)
    assert [name for name, _ in backbone.named_parameters()] == names
    assert all(a is b for a, b in zip(parameters, backbone.parameters(), strict=True))
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    copied, top = copy.deepcopy((backbone, head))
    assert torch.equal(top(copied(batch), batch), plain)
    assert torch.equal(head(backbone(batch), batch), rounded)
    rounding.detach()
    assert torch.equal(head(backbone(batch), batch), plain)
    assert not any("forward" in vars(module) for module in [*backbone.modules(), *head.modules()])
    assert not backbone._forward_pre_hooks


def test_it_ends_with_an_error_too(model: Callable[..., Any], labelled: Callable[..., Batch]) -> None:
    backbone, head = model("bert")
    with pytest.raises(RuntimeError, match="stop"), fake_quantized(backbone, head):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in backbone.modules())


def test_parts_can_be_taken_out_meanwhile(model: Callable[..., Any], labelled: Callable[..., Batch]) -> None:
    """As if it had been pruned first; with gates at 0 before, the numbers are the same."""
    backbone, head = model("bert")
    pruned = copy.deepcopy(backbone)
    whole = Structure.whole(backbone.model)
    keep = Structure((0, 2), ((0, 2), (1,)), (tuple(range(5)), (1, 7)), whole.of)
    batch = labelled()
    with torch.no_grad():
        with fake_quantized(backbone, head):
            head(backbone(batch), batch)
            backbone.prune(keep)
            found = head(backbone(batch), batch)
        pruned.prune(keep)
        with fake_quantized(pruned, head):
            assert torch.equal(head(pruned(batch), batch), found)


def test_recomputed_activations_round_in_the_same_way(
    make_backbone: Callable[..., Pretrained], labelled: Callable[..., Batch]
) -> None:
    found = []
    for again in (False, True):
        backbone = make_backbone("bert", gradient_checkpointing=again, config={"hidden_dropout_prob": 0.0,
                                 "attention_probs_dropout_prob": 0.0}).train()  # fmt: skip
        head = SequenceClassification(backbone.hidden_size, LabelSpace(("a", "b", "c")))
        head.bind(backbone)
        with fake_quantized(backbone, head):
            backbone(labelled()).last_TD.square().mean().backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_how_far_apart(model: Callable[..., Any], labelled: Callable[..., Batch]) -> None:
    backbone, head = model("bert")
    batches = [labelled(), labelled((3, 8), first=4)]
    found = int8_difference(backbone, head, batches)
    with torch.no_grad():
        plain = torch.cat([head(backbone(batch), batch) for batch in batches])
        with fake_quantized(backbone, head):
            rounded = torch.cat([head(backbone(batch), batch) for batch in batches])
    assert found.largest == pytest.approx(float((plain - rounded).abs().max()))
    assert found.mean == pytest.approx(float((plain - rounded).abs().mean()))
    assert found.agreement == float((plain.argmax(1) == rounded.argmax(1)).float().mean())
    assert 0 < found.mean < found.largest
    with pytest.raises(UserError, match="takes rows, and there are none"):
        int8_difference(backbone, head, [])


def test_what_can_not_run_in_int8(model: Callable[..., Any]) -> None:
    _, head = model("bert")
    with pytest.raises(UserError, match=r"stack\.0\.rnn is an LSTM, and only linear layers and embeddings"):
        FakeQuantization().attach(RecurrentEncoder(vocabulary_size=9, hidden_size=8), head)
    with pytest.raises(UserError, match="adapters are added to the weights in the end: save the model"):
        FakeQuantization().attach(Adapted("tiny:bert"), head)
    found = FakeQuantization().attach(TextCNN(vocabulary_size=9, embedding_size=4, filters=2), head)
    assert found == {"linear": 3, "embeddings": 1}


# ONNX Runtime


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_the_numbers_are_those_of_the_export(
    model: Callable[..., Any], labelled: Callable[..., Batch], tmp_path: Path
) -> None:
    """Exported and quantized by ONNX Runtime's own tools, one sequence at a time."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from llm_arch.inference.export.graph import Graph, grids
    from llm_arch.inference.export.onnx import OnnxRuntime

    backbone, head = model("bert", config={"num_hidden_layers": 2})
    graph = Graph(backbone, head, types=False).eval()
    runtime = OnnxRuntime()
    runtime.write(graph, tmp_path, "int8", ())
    session = runtime.open(tmp_path, "int8", graph.outputs)
    apart, rounding = [], []
    for number, length in enumerate((9, 5, 14, 20, 3, 11)):
        batch = labelled((length,), first=number)
        found = session(grids(batch, graph.inputs))[0]
        with torch.no_grad():
            exact = head(backbone(batch), batch)
            with fake_quantized(backbone, head):
                twin = head(backbone(batch), batch)
        apart.append(float((twin - found).abs().max()))
        rounding.append(float((exact - found).abs().max()))
    # Most sequences have the same whole numbers throughout; in others a value that lies between two goes to the other.
    assert sorted(apart)[len(apart) // 2] < 1e-5
    assert max(apart) < 0.1 * max(rounding)
