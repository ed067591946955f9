"""Small transformers of every kind that can be pruned, with a head and labelled batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.calibration import Calibration
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.types import Batch, LabelSpace

VOCAB = 60
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**COMMON, "model_type": "bert"},
    "gpt2": {**COMMON, "model_type": "gpt2", "n_inner": 12},
    "modernbert": {
        **COMMON,
        "model_type": "modernbert",
        "local_attention": 6,
        "global_attn_every_n_layers": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 2},
}


def backbone(kind: str, **arguments: Any) -> Pretrained:
    """All weights, norms and biases lie away from where they start."""
    config = CONFIGS[kind] | arguments.pop("config", {})
    torch.manual_seed(2)
    found = Pretrained(config=config, **arguments)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return found.eval()


def batch(lengths: Sequence[int] = (9, 1, 5, 14), *, padded: bool = False, first: int = 0) -> Batch:
    """Sequences of random tokens with labels; the row of a number is always the same."""
    rows, labels = [], []
    for number, length in enumerate(lengths, first):
        generator = torch.Generator().manual_seed(number)
        rows.append(torch.randint(4, VOCAB, (length,), generator=generator).tolist())
        labels.append(number % 3)
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, "padded" if padded else "flat", {"label": torch.tensor(labels)})


def calibration(kind: str, batches: Sequence[Batch] | None = None, **arguments: Any) -> Calibration:
    """A backbone with a head that is sure of what it says."""
    body = backbone(kind, **arguments)
    head = SequenceClassification(body.hidden_size, LabelSpace(("a", "b", "c"))).eval()
    head.bind(body)
    with torch.no_grad():
        head.classify.weight.mul_(5)
    return Calibration(body, head, [batch()] if batches is None else batches)


@pytest.fixture
def make_backbone() -> Callable[..., Pretrained]:
    """`backbone`, for tests that can't import this file."""
    return backbone


@pytest.fixture
def labelled() -> Callable[..., Batch]:
    """`batch`, likewise."""
    return batch


@pytest.fixture
def calibrated() -> Callable[..., Calibration]:
    """`calibration`, likewise."""
    return calibration
