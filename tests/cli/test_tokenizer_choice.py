"""Data and backbone read text alike, or the run does not begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data.tokenizers import load_tokenizer

FEW = (
    *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--before", "false"),
    *("--data.validation_fraction", "0.2"),
)


@pytest.fixture
def other(tmp_path: Path) -> str:
    """A tokenizer that is smaller than the backbone's, so that its ids would pass for the backbone's."""
    texts = [f"turn on the lamp number {i} in the kitchen" for i in range(50)]
    train_tokenizer(texts, "wordpiece", 200, progress=False).save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.fixture
def saved(fit: Callable[..., Any], here: Path) -> str:
    """A backbone with a tokenizer beside it."""
    done = fit(*FEW, "--output", "saved")
    assert done.code == 0, done.err
    return "saved/model"


def test_another_tokenizer_than_the_backbone_s(fit: Callable[..., Any], saved: str, other: str) -> None:
    done = fit(*FEW, "--model.backbone", saved, "--data.tokenizer", other, "--output", "again")
    assert done.code == 2
    assert f"data.tokenizer {other} is not the one that the backbone {saved} was trained with" in done.err
    assert not Path("again").exists()


def test_a_tokenizer_to_be_trained_gives_way(run: Callable[..., Any], saved: str, here: Path) -> None:
    text = [f"turn on the lamp number {i} in the kitchen" for i in range(50)]
    (here / "corpus.txt").write_text("\n".join(text), encoding="utf-8")
    done = run(
        *("fit", "-c", "pretrain/mlm", "--data.train", "corpus.txt", "--model.backbone", saved),
        *(*FEW, "--data.max_length", "64", "--data.max_tokens", "256", "--output", "adapted"),
    )
    assert done.code == 0, done.err
    assert f"tokenizer: that of {saved}" in done.out
    assert load_tokenizer("adapted/model").get_vocab() == load_tokenizer(saved).get_vocab()
