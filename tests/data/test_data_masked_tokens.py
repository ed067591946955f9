"""Masked tokens: what a batch asks for, and that a run is the same however it is interrupted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data import MaskedTokenData
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.heads.language import TokenScore
from llm_arch.heads.masked_language_model import MaskedLanguageModel, MaskPrediction
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, Prediction, UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{i}" for i in range(60))
MASK = 4


@pytest.fixture(scope="module")
def masks(make_words: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_words(tmp_path_factory.mktemp("masks"), (*SPECIAL, *WORDS), mask_token="[MASK]")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    path = tmp_path / "corpus.txt"
    path.write_text("".join(" ".join(random.choice(WORDS, random.integers(1, 50))) + "\n" for _ in range(60)))
    return str(path)


@pytest.fixture
def make(masks: str, tmp_path: Path) -> Callable[..., MaskedTokenData]:
    def build(train: str | None = None, **options: Any) -> MaskedTokenData:
        defaults: dict[str, Any] = {"tokenizer": masks, "cache_dir": str(tmp_path / "cache"), "max_length": 20}
        return MaskedTokenData(train, **(defaults | {"max_tokens": 100, "validation_fraction": 0.0} | options))

    return build


def rows_of(data: MaskedTokenData, batch: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each row what it holds, what it held before it was masked, and the places that are asked for."""
    original = batch.input_ids.clone()
    original[batch.labels["positions"]] = batch.labels["targets"]
    found = []
    for start, length in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True):
        places = batch.labels["positions"] - start
        places = places[(places >= 0) & (places < length)].tolist()
        part = slice(start, start + length)
        found.append((batch.input_ids[part].tolist(), original[part].tolist(), places))
    return found


@pytest.mark.parametrize("masking", ["token", "word", "span"])
def test_batches(corpus: str, make: Any, masking: str) -> None:
    data = make(corpus, masking=masking, mask_rate=0.3)
    rows = data.split("train").rows
    pieces = 0
    for batch in data.train_dataloader():
        assert batch.token_type_ids is None
        assert batch.rows == batch.size
        for index, (_, original, places) in zip(batch.index.tolist(), rows_of(data, batch), strict=True):
            tokens = rows[[index]]["tokens"].tolist()
            assert original == [2, *tokens, 3]
            assert len(places) == max(1, round(0.3 * len(tokens)))  # every token of this vocabulary is a word
            assert 0 not in places
            assert len(original) - 1 not in places
            pieces += 1
    assert pieces == len(rows)


def test_bytes_of_what_is_asked_for(corpus: str, make: Any) -> None:
    data = make(corpus, mask_rate=0.5)
    rows = data.split("train").rows
    for batch in data.train_dataloader():
        for index, found, (_, original, places) in zip(
            batch.index.tolist(), batch.labels["text_bytes"].tolist(), rows_of(data, batch), strict=True
        ):
            share = len(places) / (len(original) - 2)
            assert found == pytest.approx(int(rows.pieces.text_bytes[index]) * share, rel=1e-6)


def masks_by_row(loader: Any) -> dict[int, str]:
    found = {}
    for batch in loader:
        for number, index in enumerate(batch.index.tolist()):
            own = batch.segments[batch.labels["positions"]] == number
            places = batch.position_ids[batch.labels["positions"]][own]
            found[index] = str([places.tolist(), batch.input_ids[batch.labels["positions"]][own].tolist()])
    return found


def test_masks_follow_seed_epoch_and_piece(corpus: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(**options: Any) -> dict[int, str]:
        return masks_by_row(make(corpus, **options).train_dataloader())

    first = train()
    assert train(max_tokens=33, layout="padded", num_workers=0) == first
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert train() != first
    # Validation is the same in every run, and asks the same whatever the batches are.
    test = masks_by_row(make(test=corpus).test_dataloader())
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert masks_by_row(make(test=corpus, evaluation_tokens=21).test_dataloader()) == test


def test_epochs_mask_anew(corpus: str, make: Any) -> None:
    data = make(corpus)
    rows = list(range(10))
    columns = data.split("train").rows[rows]
    found = [data.collate(columns | {"index": rows, "epoch": epoch}).labels["positions"].tolist() for epoch in (0, 1)]
    assert found[0] != found[1]


# Rows to predict


def test_rows_to_predict(make: Any, write_rows: Any) -> None:
    data = make(predict=write_rows([{"text": "w1 [MASK] w3"}, {"text": "[MASK] w1 w2 [MASK]"}]))
    [batch] = list(data.predict_dataloader())
    assert batch.input_ids[batch.labels["positions"]].tolist() == [MASK] * 3
    assert "targets" not in batch.labels
    found = sorted(zip(batch.segments[batch.labels["positions"]].tolist(), strict=True))
    assert len(found) == 3


def test_padded_rows_to_predict(make: Any, write_rows: Any, make_words: Any, tmp_path: Path) -> None:
    """Where the mask token has id 0, padding cells look like it."""
    tokenizer = make_words(tmp_path / "odd", ("[MASK]", *SPECIAL[:4], *WORDS), mask_token="[MASK]")
    rows = write_rows([{"text": "w1 [MASK] w3"}, {"text": "[MASK] w1 w2 w3 w4 w5"}])
    data = make(predict=rows, tokenizer=tokenizer, layout="padded")
    [batch] = list(data.predict_dataloader())
    assert batch.position_ids[batch.labels["positions"]].tolist() in ([1, 2], [2, 1])
    assert len(batch.labels["positions"]) == 2


def test_encode_for_a_predictor(make: Any) -> None:
    data = make()
    columns, counts = data.encode(
        [{"text": "w1 [MASK]"}, {"text": "w1 w2"}, {"text": " ".join(WORDS[:30]) + " [MASK]"}]
    )
    assert columns["input_ids"] == [[2, 6, 4, 3], [], []]
    message = "has no [MASK] among its first 20 tokens; write [MASK] where a word is to be guessed"
    assert columns["fault"] == [None, message, message]
    assert counts == {"truncated": 1}
    whole = {"input_ids": [[2, 6, 4, 3]], "token_type_ids": [None], "index": [0], "epoch": 0}
    assert data.collate(whole, labelled=False).labels["positions"].tolist() == [2]


def test_rows_without_a_mask(make: Any, write_rows: Any) -> None:
    data = make(predict=write_rows([{"text": "w1"}]))
    with pytest.raises(UserError, match=re.escape("line 1: has no [MASK] among its first 20 tokens; write [MASK]")):
        data.split("predict")


def test_tokens_get_their_text(make: Any) -> None:
    data = make()
    fills = [[TokenScore(6, 0.5), TokenScore(9, 0.25)], []]
    found = data.complete(MaskPrediction(3, fills), ("w1 [MASK]", None))
    assert found == MaskPrediction(3, [[TokenScore(6, 0.5, "w1"), TokenScore(9, 0.25, "w4")], []])
    assert data.complete(Prediction(3), ("w1", None)) == Prediction(3)


def test_an_example_to_try(corpus: str, make: Any) -> None:
    data = make(corpus)
    text = data.example("train")
    assert text is not None
    assert text.split().count("[MASK]") == 1
    assert data.encode([{"text": text}])[0]["input_ids"][0]


# What is wrong


def test_no_mask_token(corpus: str, make: Any, words: str) -> None:
    message = (
        f"the tokenizer ({words}) has no mask token; take one that has (BERT's, or one that llm-arch tokenizer "
        f"trains), or train a causal language model"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make(corpus, tokenizer=words).split("train")


def test_impossible_rates(make: Any) -> None:
    with pytest.raises(UserError, match=r"^data.mask_rate must be above 0 and below 1, got 1.5$"):
        make(mask_rate=1.5)


def test_words_of_a_real_tokenizer(make: Any, tokenizer: str, tmp_path: Path) -> None:
    """MiniLM's: a word of several tokens is masked as a whole."""
    path = tmp_path / "real.txt"
    path.write_text("Internationalisation and reinterpretation are unbelievably difficult.\n" * 2)
    data = make(str(path), tokenizer=tokenizer, masking="word", mask_share=1.0, random_share=0.0)
    loaded = load_tokenizer(tokenizer)
    for batch in data.train_dataloader():
        for masked, original, places in rows_of(data, batch):
            tokens = loaded.convert_ids_to_tokens(original)
            for place in range(1, len(tokens) - 1):
                if tokens[place + 1].startswith("##"):
                    assert (place in places) == (place + 1 in places)
            assert [masked[p] for p in places] == [loaded.mask_token_id] * len(places)


# A run that is interrupted ends where the straight run ends


SMALL = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 16, "max_position_embeddings": 32}


class Stop(L.Callback):
    """Saves after a step and takes the process away; notes what was seen."""

    def __init__(self, step: int | None = None, path: Path | None = None) -> None:
        self.step, self.path, self.seen = step, path, {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        labels = {name: value.tolist() for name, value in batch.labels.items()}
        self.seen[trainer.current_epoch, batch_idx] = [batch.index.tolist(), batch.input_ids.tolist(), labels]
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


def fit(data: MaskedTokenData, folder: Path, stop: Stop, checkpoint: Path | None = None, accumulation: int = 1) -> Any:
    L.seed_everything(3, verbose=False)
    task = Task(
        Pretrained(config=SMALL), MaskedLanguageModel, LabelSpace(()), learning_rate=0.01, vocabulary=data.vocabulary
    )
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_epochs=2,
        accumulate_grad_batches=accumulation,
        default_root_dir=str(folder),
        callbacks=[stop],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return task, trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_interrupted_and_resumed(corpus: str, make: Any, tmp_path: Path, accumulation: int) -> None:
    def data() -> MaskedTokenData:
        return make(corpus, max_tokens=150, masking="span", validation_fraction=0.1)

    straight = Stop()
    task, trainer = fit(data(), tmp_path, straight, accumulation=accumulation)
    steps = trainer.global_step
    for step in (steps // 2, steps - 1) if accumulation == 1 else (steps // 2 + 1,):
        path = tmp_path / f"{step}.ckpt"
        with pytest.raises(InterruptedError):
            fit(data(), tmp_path, Stop(step, path), accumulation=accumulation)
        rest = Stop()
        resumed, _ = fit(data(), tmp_path, rest, path, accumulation)
        expected = task.state_dict()
        assert [n for n, value in resumed.state_dict().items() if not torch.equal(value, expected[n])] == []
        assert len(rest.seen) == len(straight.seen) - step * accumulation
        assert all(straight.seen[place] == seen for place, seen in rest.seen.items())
