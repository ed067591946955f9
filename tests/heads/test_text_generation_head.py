"""Writing texts through Task and Trainer: what is learnt, what is written and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data.completion import CompletionData
from llm_arch.heads.text_generation import GenerationMetrics, TextGeneration, beginnings
from llm_arch.heads.text_metrics import text_metrics
from llm_arch.inference import Predictor, load, save
from llm_arch.inference.generator import Generator
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import Backbone, LabelSpace, UserError

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fuenf", "six": "sechs"}
BART = {
    "model_type": "bart",
    "d_model": 48,
    "max_position_embeddings": 64,
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 96 for part in ("encoder", "decoder")},
}
SHAPES: dict[str, Callable[[], Backbone]] = {
    "decoder": lambda: Pretrained(
        config={"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64}
    ),
    "encoder-decoder": lambda: EncoderDecoder(config=BART),
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("words")
    train_tokenizer([*WORDS, *WORDS.values()] * 9, "wordpiece", 200, progress=False).save_pretrained(place)
    return str(place)


@pytest.fixture
def made(words: str, write_rows: Callable[..., str], tmp_path: Path) -> Callable[..., tuple[Task, Trainer, Any]]:
    rows = [{"prompt": f"{a} {b}", "completion": f"{WORDS[a]} {WORDS[b]}"} for a in WORDS for b in WORDS]

    def make(kind: str, steps: int = 0, **head: Any) -> tuple[Task, Trainer, Any]:
        L.seed_everything(0, verbose=False)
        file = write_rows(rows)
        data = CompletionData(
            file, file, file, tokenizer=words, max_length=24, batch_size=12, cache_dir=str(tmp_path / "cache")
        )
        options = {"metrics": ("chrf", "exact_match"), "max_new_tokens": 6, **head}
        task = Task(
            SHAPES[kind](),
            partial(TextGeneration, **options),
            data.label_space,
            vocabulary=data.vocabulary,
            dropout=0.0,
            learning_rate=5e-3,
        )
        trainer = Trainer(
            max_steps=max(1, steps),
            max_epochs=-1,
            accelerator="cpu",
            precision="32-true",
            callbacks=[EarlyStopping(patience=1000)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=str(tmp_path),
        )
        if steps:
            trainer.fit(task, datamodule=data)
        return task, trainer, data

    return make


@pytest.mark.parametrize("kind", SHAPES)
def test_it_learns_to_write_and_the_saved_model_writes_the_same(
    kind: str, made: Callable[..., Any], tmp_path: Path
) -> None:
    task, trainer, data = made(kind, steps=110)
    found = trainer.test(task, datamodule=data, verbose=False)[0]
    assert found["test/exact_match"] > 0.8
    assert found["test/chrf"] > 80
    assert found["test/perplexity"] < 1.5
    assert "val/chrf" not in trainer.callback_metrics
    directory = save(task, data, tmp_path / "model")
    rows = [{"prompt": "one six"}, {"prompt": "two"}, {"prompt": "five four"}]
    predictions = list(Predictor(directory).stream(rows))
    assert predictions[0].to_dict() == {"generated": "eins sechs"}
    generator = Generator(load(directory))
    assert generator([row["prompt"] for row in rows], max_new_tokens=6) == [p.generated for p in predictions]  # type: ignore[attr-defined]
    pieces: list[str] = []
    assert generator.stream("one six", pieces.append, max_new_tokens=6) == "eins sechs"
    assert "".join(pieces).strip() == "eins sechs"


@pytest.mark.parametrize("kind", SHAPES)
def test_a_metric_of_texts_can_be_followed(kind: str, made: Callable[..., Any]) -> None:
    task, trainer, data = made(kind, follow="chrf")
    assert (task.head.major, task.head.mode) == ("chrf", "max")
    found = trainer.validate(task, datamodule=data, verbose=False)[0]
    assert {"val/chrf", "val/exact_match", "val/perplexity"} <= found.keys()


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_written_follows_the_beginning_of_a_labelled_row(kind: str, made: Callable[..., Any]) -> None:
    task, trainer, data = made(kind)
    trainer.validate(task, datamodule=data, verbose=False)
    batch = next(iter(data.val_dataloader()))
    columns = {k: [v] * 1 for k, v in data.split("validation").rows[0].items()} | {"index": [0], "epoch": 0}
    asked = data.collate(columns, labelled=False)
    row = batch.index.tolist().index(0)
    begun = beginnings(batch)
    start, length = int(begun.starts[row]), int(begun.lengths[row])
    if kind == "decoder":
        assert begun.input_ids[start : start + length].tolist()[:-1] == asked.input_ids.tolist()[: length - 1]
    else:
        assert length == 1
        assert begun.source is not None
    task.eval()
    assert len(task.head.write(begun)) == batch.rows


def test_the_metric_is_that_of_all_texts_at_once() -> None:
    metric = GenerationMetrics(("bleu", "chrf"), lambda: "de")
    written, right = ["eins zwei drei vier", "fuenf"], ["eins zwei drei vier", "sechs"]
    nll, hits = torch.tensor([0.5, 1.5]), torch.tensor([True, False])
    for i in (1, 0):
        metric.update(nll[i : i + 1], hits[i : i + 1], None, written[i : i + 1], right[i : i + 1], [""])
    found = metric.compute()
    expected = text_metrics(("bleu", "chrf"), written, right, "de")
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected)
    assert float(found["perplexity"]) == pytest.approx(2.71828, abs=1e-4)
    metric.reset()
    metric.update(nll, hits, None)
    assert metric.compute().keys() == {"perplexity", "accuracy"}


def test_mistakes_are_said(made: Callable[..., Any]) -> None:
    none = LabelSpace(())
    with pytest.raises(UserError, match="unknown text metric 'blue'"):
        TextGeneration(8, none, metrics=("blue",))
    with pytest.raises(UserError, match=r"head\.follow must be perplexity or one of"):
        TextGeneration(8, none, follow="bleu")
    with pytest.raises(UserError, match="max_new_tokens must be at least 1"):
        TextGeneration(8, none, max_new_tokens=0)
    with pytest.raises(UserError, match="needs data with texts to write"):
        _ = TextGeneration(8, none).detokenizer
    with pytest.raises(UserError, match="take a decoder"):
        Task("tiny:bert", TextGeneration, none)
