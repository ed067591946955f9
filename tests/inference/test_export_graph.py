"""The graph that is exported, run by torch: the logits of every head on every kind of backbone, for any sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_arch.backbones.convolutional import ConvolutionalEncoder, TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.heads.regression import Regression
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.inference.export.exported import Exported
from llm_arch.inference.export.graph import MARKERS, TYPES, Graph, grids, head_logits
from llm_arch.inference.export.traced import example, program
from llm_arch.types import Backbone, Batch, Head, LabelSpace, UserError

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **SMALL},
    "gpt2": {
        "model_type": "gpt2",
        **SMALL,
        "num_hidden_layers": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "modernbert": {
        "model_type": "modernbert",
        **SMALL,
        **IDS,
        "local_attention": 4,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "llama": {"model_type": "llama", **SMALL, "num_hidden_layers": 1, "num_key_value_heads": 1, **IDS},
}
ABC = LabelSpace(("a", "b", "c"))
HEADS: dict[str, tuple[type[Head], LabelSpace, dict[str, Any]]] = {
    "one label": (SequenceClassification, ABC, {}),
    "largest": (SequenceClassification, ABC, {"pooling": "max"}),
    "first": (SequenceClassification, ABC, {"pooling": "first"}),
    "label sets": (SequenceClassification, LabelSpace(("a", "b"), multi=True), {}),
    "binary": (SequenceClassification, LabelSpace(("a", "b")), {"binary": True}),
    "number": (Regression, LabelSpace((), moments=(3.0, 2.0)), {}),
    "choice": (MultipleChoice, LabelSpace(()), {}),
    "tags": (TokenClassification, LabelSpace(("O", "B-x", "I-x")), {"crf": True}),
    "answers": (QuestionAnswering, LabelSpace(("start", "end")), {}),
    "relations": (RelationExtraction, ABC, {}),
}


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    if name == "textcnn":
        return TextCNN(vocabulary_size=40, embedding_size=8, filters=4)
    if name == "cnn":
        return ConvolutionalEncoder(vocabulary_size=40, hidden_size=8, num_layers=2)
    if name == "causal cnn":
        return ConvolutionalEncoder(vocabulary_size=40, hidden_size=8, num_layers=2, causal=True, dilation_growth=2)
    return Pretrained(config=CONFIGS[name])


def graph_of(backbone: str, head: str) -> Graph:
    body, (kind, labels, options) = backbone_of(backbone), HEADS[head]
    top = kind(body.hidden_size, labels, **options)
    top.bind(body)
    with torch.no_grad():
        for parameter in (*body.parameters(), *top.parameters()):
            parameter.normal_(0, 0.5)  # far apart, so that a mistake shows
    return Graph(body.eval(), top.eval(), types=backbone == "bert").eval()


def batch_of(head: str, types: bool, layout: str = "flat", seed: int = 0) -> Batch:
    """Four rows; of them two are several windows or choices."""
    generator = torch.Generator().manual_seed(seed)
    windows = [[9], [7, 12, 8], [8], [10, 7]]
    single = head in ("answers", "tags", "choice")
    sizes = [sum(cut) for cut in windows] if single else [cut[0] for cut in windows]
    ids = [torch.randint(3, 40, (size,), generator=generator).tolist() for size in sizes]
    columns: dict[str, Any] = {
        "input_ids": ids,
        "token_type_ids": [[i % 2 for i in range(size)] if types else None for size in sizes],
        "windows": windows if single else [None] * 4,
        "index": [5, 6, 7, 9],
    }
    if head in ("answers", "tags"):
        words = [list(range(1, size, 2)) for size in sizes]
    elif head == "relations":
        words = [[1, 3, 4, 6], [4, 6, 0, 2], [2, 3, 5, 7], [1, 5, 6, 7]]
    else:
        return make_batch(columns, layout)
    columns |= {"word_token": words, "word_start": words, "word_end": words}
    return make_batch(columns, layout)


def values(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@torch.no_grad()
def own(graph: Graph, batch: Batch) -> Tensor:
    found = graph.head(graph.backbone(batch), batch)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("backbone", [*CONFIGS, "textcnn", "cnn", "causal cnn"])
@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_backbone_and_head(backbone: str, head: str, layout: str) -> None:
    graph = graph_of(backbone, head)
    batch = batch_of(head, backbone == "bert", layout)
    given = grids(batch, graph.inputs)
    assert list(given) == graph.inputs
    with torch.no_grad():
        found = values(graph(*given.values()))
    assert len(found) == len(graph.outputs)
    wanted = own(graph, batch)
    assert wanted.std() > 3e-3
    torch.testing.assert_close(head_logits(found, batch, graph.kind), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "head"), [("gpt2", "relations"), ("modernbert", "answers"), ("llama", "choice"), ("textcnn", "tags")]
)
def test_one_trace_serves_all_sizes(backbone: str, head: str) -> None:
    graph = graph_of(backbone, head)
    traced = program(graph).module()
    for seed, rows in enumerate((4, 1, 3)):
        batch = batch_of(head, False, seed=seed)
        given = [value[:rows] for value in grids(batch, graph.inputs).values()]
        if rows == 1:  # without padding
            given = [value[:, : int(given[1].sum())] if value.shape[1] > 4 else value for value in given]
        with torch.no_grad():
            for one, other in zip(values(traced(*given)), values(graph(*given)), strict=True):
                real = given[1].bool() if one.dim() == 3 else slice(None)
                torch.testing.assert_close(one[real], other[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_eight_bits_read_sequences_one_by_one_with_the_same_results(head: str) -> None:
    graph = graph_of("textcnn", head)
    exported = Exported(
        "nowhere",
        runtime="onnx",
        precision="int8",
        kind=graph.kind,
        inputs=graph.inputs,
        hidden_size=4,
        vocabulary=40,
        parameters=[1, 1],
        max_length=None,
        causal=False,
        is_decoder=False,
    )
    sizes = []

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        sizes.append(tuple(inputs["input_ids"].shape))
        return values(graph(*inputs.values()))

    exported._run = run
    batch = batch_of(head, False)
    with torch.no_grad():
        found = exported(batch).last_TD
    assert sizes == [(1, length) for length in batch.lengths.tolist()]
    torch.testing.assert_close(found, own(graph, batch), rtol=1e-4, atol=1e-5)


def test_a_text_of_one_token() -> None:
    """Which torch would take for a size of its own."""
    graph = graph_of("textcnn", "one label")
    batch = make_batch({"input_ids": [[7]], "token_type_ids": [None], "index": [0]})
    with torch.no_grad():
        found = values(program(graph).module()(*grids(batch, graph.inputs).values()))
    torch.testing.assert_close(head_logits(found, batch, graph.kind), own(graph, batch))


def test_what_a_graph_takes_and_gives() -> None:
    assert graph_of("bert", "one label").inputs == ["input_ids", "attention_mask", TYPES]
    assert graph_of("gpt2", "relations").inputs == ["input_ids", "attention_mask", MARKERS]
    assert graph_of("gpt2", "answers").outputs == ["logits", "no_answer"]
    given = example(graph_of("bert", "relations"))
    assert {name: tuple(value.shape) for name, value in given.items()} == {
        "input_ids": (2, 9),
        "attention_mask": (2, 9),
        "token_type_ids": (2, 9),
        "markers": (2, 4),
    }


def test_heads_that_write_are_refused() -> None:
    body = backbone_of("gpt2")
    for kind in (LanguageModel, TextGeneration):
        head = kind(body.hidden_size, LabelSpace(()))
        with pytest.raises(UserError, match=f"{kind.__name__} tells or writes tokens, .* models that classify"):
            Graph(body, head, types=False)


def test_what_goes_token_by_token_is_refused() -> None:
    body = RecurrentEncoder(vocabulary_size=40, hidden_size=8)
    head = SequenceClassification(8, ABC)
    head.bind(body)
    with pytest.raises(UserError, match="RecurrentEncoder goes from token to token"):
        program(Graph(body.eval(), head.eval(), types=False))


class LooksAtNumbers(SequenceClassification):
    """A head of a user's that no trace can follow."""

    def forward(self, hidden: Any, batch: Batch) -> Tensor:
        return super().forward(hidden, batch) * (2 if float(hidden.last_TD.sum()) > 0 else 1)


def test_what_looks_at_its_numbers_is_refused_with_the_reason() -> None:
    body = backbone_of("textcnn")
    head = LooksAtNumbers(body.hidden_size, ABC)
    head.bind(body)
    with pytest.raises(UserError, match=r"TextCNN with LooksAtNumbers can't be traced into one graph .*; known"):
        program(Graph(body.eval(), head.eval(), types=False))
