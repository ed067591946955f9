"""Models of every kind in memory, small and far from symmetric, so that a mistake shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.completion import CompletionData
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.module import DataModule
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.regression import RegressionData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.sentence_pairs import SentencePairData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.heads.regression import Regression
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.inference.directory import Model
from llm_arch.task import WritesTexts
from llm_arch.types import Backbone, Batch, Head, Hidden, LabelSpace

LABELS = LabelSpace(("a", "b", "c"))


class Kind(NamedTuple):
    """How one kind of model is made, and rows for it."""

    head: Callable[[int, LabelSpace], Head]
    data: Callable[..., DataModule]
    labels: LabelSpace | None
    rows: list[dict[str, Any]]
    backbone: str = "tiny:bert"


TEXTS = [{"text": t} for t in ("turn on unbelievably bright kitchen lights!", "cold", "open the door, or the window")]
TAGS = LabelSpace(("O", "B-LOC", "I-LOC", "B-PER", "I-PER"))
PEOPLE = [{"text": "Ada Lovelace met Babbage in London. " * 3}, {"text": "He saw London"}]
RELATED = [
    {"text": "Ada Lovelace was born in London", "head": {"start": 0, "end": 12}, "tail": {"start": 25, "end": 31}},
    {"text": "London, where Ada lived", "head": {"start": 14, "end": 17}, "tail": {"start": 0, "end": 6}},
]
ASKED = [
    {"question": "Who met Ada?", "context": "Long ago in London, Charles Babbage met Ada Lovelace at a party. " * 2},
    {"question": "Where?", "context": "In London"},
]
CHOSEN = [
    {"question": "what is cold", "choices": ["ice", "a fire", "the bright sun"]},
    {"question": "what is open", "choices": ["door", "wall"]},
]
KINDS = {
    "classes": Kind(SequenceClassification, TextClassificationData, LABELS, TEXTS),
    "binary": Kind(partial(SequenceClassification, binary=True), TextClassificationData, LabelSpace(("a", "b")), TEXTS),
    "sets": Kind(SequenceClassification, TextClassificationData, LabelSpace(("a", "b", "c"), multi=True), TEXTS),
    "entities": Kind(TokenClassification, TokenClassificationData, TAGS, PEOPLE),
    "crf": Kind(partial(TokenClassification, crf=True), TokenClassificationData, TAGS, PEOPLE),
    "relations": Kind(RelationExtraction, RelationExtractionData, LABELS, RELATED),
    "answers": Kind(QuestionAnswering, QuestionAnsweringData, None, ASKED),
    "choices": Kind(MultipleChoice, MultipleChoiceData, None, CHOSEN),
    "numbers": Kind(Regression, RegressionData, LabelSpace((), moments=(2.0, 3.0)), TEXTS),
    "pairs": Kind(BertPretraining, SentencePairData, None, [{"text": "It is cold", "text_pair": "So [MASK] the door"}]),
    "next": Kind(LanguageModel, NextTokenData, None, TEXTS, "tiny:gpt2"),
    "masks": Kind(MaskedLanguageModel, MaskedTokenData, None, [{"text": "turn [MASK] the light"}, {"text": "[MASK]!"}]),
    "written": Kind(TextGeneration, CompletionData, None, [{"prompt": t["text"]} for t in TEXTS], "tiny:gpt2"),
    "flat pair": Kind(TextGeneration, CompletionData, None, [{"prompt": t["text"]} for t in TEXTS], "bert to bert"),
    "padded pair": Kind(TextGeneration, CompletionData, None, [{"prompt": t["text"]} for t in TEXTS], "bart"),
}
BART = {
    "model_type": "bart",
    "vocab_size": 30522,
    "d_model": 32,
    **{f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
    "max_position_embeddings": 64,
    "scale_embedding": True,
}
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "lstm": lambda: RecurrentEncoder(vocabulary_size=30522, hidden_size=16),
    "bert to bert": lambda: EncoderDecoder(encoder="tiny:bert"),
    "bart": lambda: EncoderDecoder(config=BART),
    "textcnn": lambda: TextCNN(vocabulary_size=30522, embedding_size=16, filters=8),
}


def far_apart(*modules: nn.Module, std: float = 0.3) -> None:
    torch.manual_seed(0)
    for module in modules:
        module.eval()
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0, std)


def make(kind: str, tokenizer: str, backbone: str | None = None, **options: Any) -> Model:
    """A model with random weights; `options` of its data."""
    head_of, data_of, labels, _, usual = KINDS[kind]
    data = data_of(tokenizer=tokenizer, **{"max_length": 24, **options})
    if labels is not None:
        data.label_space = labels  # type: ignore[misc]
    name = backbone or usual
    made = BACKBONES[name]() if name in BACKBONES else Pretrained(name)
    made.grow(data.vocabulary)
    head = head_of(made.hidden_size, data.label_space)
    head.bind(made)
    if isinstance(data, WritesTexts):
        data.suit(made)
        head.read_as(data.detokenizer)
    far_apart(made, head)
    if kind == "crf":  # its scores are learnt in large units
        head.crf.transition_CC.data *= 0.01  # type: ignore[union-attr, operator]
    return Model(Path("model"), made, head, data, {})


@pytest.fixture(name="make")
def _make(tokenizer: str) -> Callable[..., Model]:
    return lambda kind="classes", backbone=None, **options: make(kind, tokenizer, backbone, **options)


@pytest.fixture
def rows_of() -> Callable[[str], list[dict[str, Any]]]:
    return lambda kind: KINDS[kind].rows


class Linear(Backbone):
    """States are the embeddings: with a mean and a linear head the whole model is linear, and all shares are known."""

    causal = False

    def __init__(self, vocabulary: int, size: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, size)
        self.hidden_size, self.max_length, self.pooling = size, None, "mean"

    @property
    def embeddings(self) -> nn.Embedding:
        return self.words

    @property
    def layers(self) -> list[nn.Module]:
        return []

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        return Hidden(self.words(batch.input_ids) if inputs_embeds is None else inputs_embeds)

    def save(self, directory: Path) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def load(cls, directory: Path, record: Any) -> Linear:
        raise NotImplementedError


@pytest.fixture
def linear(tokenizer: str) -> Model:
    data = TextClassificationData(tokenizer=tokenizer, labels=list(LABELS.names), max_length=24)
    backbone = Linear(data.vocabulary)
    head = SequenceClassification(backbone.hidden_size, LABELS)
    head.bind(backbone)
    far_apart(backbone, head)
    return Model(Path("model"), backbone, head, data, {})
