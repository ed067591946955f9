"""Documents that are packed into one batch do not see each other: a change in one moves no state of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_arch.backbones.convolutional import ConvolutionalEncoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.types import Backbone, Batch

V = 30522
KINDS: dict[str, Callable[[], Backbone]] = {
    **{kind: lambda kind=kind: Pretrained(f"tiny:{kind}") for kind in ("bert", "roberta", "modernbert")},
    **{kind: lambda kind=kind: Pretrained(f"tiny:{kind}") for kind in ("gpt2", "llama")},
    "bilstm": lambda: RecurrentEncoder(vocabulary_size=V, hidden_size=16),
    "causal lstm": lambda: RecurrentEncoder(vocabulary_size=V, hidden_size=16, bidirectional=False),
    "cnn": lambda: ConvolutionalEncoder(vocabulary_size=V, hidden_size=16),
    "causal cnn": lambda: ConvolutionalEncoder(vocabulary_size=V, hidden_size=16, causal=True),
}


@pytest.fixture
def batch(tmp_path: Path, tokenizer: str) -> Batch:
    """One packed batch of a corpus, in which a long document is several pieces."""
    lines = [f"{'the lamp in room ' * (1 + i % 3 * 6)}{i} is on" for i in range(9)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    data = NextTokenData(
        str(tmp_path / "corpus.txt"),
        tokenizer=tokenizer,
        max_length=32,
        max_tokens=400,
        validation_fraction=0,
        cache_dir=str(tmp_path / "cache"),
    )
    (found,) = data.train_dataloader()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_stays_in_its_piece(kind: str, batch: Batch) -> None:
    assert batch.size > 9
    torch.manual_seed(0)
    backbone = KINDS[kind]().eval()
    changed = batch.size // 2
    inside_T = batch.segments == changed
    ids_T = torch.where(inside_T, (batch.input_ids + 1000) % V, batch.input_ids)
    with torch.no_grad():
        before_TD = backbone(batch).last_TD
        after_TD = backbone(type(batch)(**{**vars(batch), "input_ids": ids_T})).last_TD
    assert (before_TD - after_TD)[inside_T].abs().max() > 1e-3
    torch.testing.assert_close(after_TD[~inside_T], before_TD[~inside_T], atol=0, rtol=0)
