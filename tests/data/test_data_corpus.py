"""Corpora: where their documents come from, how they are split, and batches that follow the plan."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from rich.console import Console

from llm_arch.cli import report
from llm_arch.corpus.packing import PackedPlan
from llm_arch.corpus.prepare import prepare
from llm_arch.data import MaskedTokenData, NextTokenData
from llm_arch.data.batching import TrainingPlan
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import LabelSpace, UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{i}" for i in range(200))


@pytest.fixture(scope="module")
def masks(make_words: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of whole words with a mask token."""
    return make_words(tmp_path_factory.mktemp("masks"), (*SPECIAL, *WORDS), mask_token="[MASK]")


def texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, longest))) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., str]:
    """Writes documents, one a line, and returns the path."""

    def write(lines: list[str], name: str = "corpus.txt") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def make(masks: str, tmp_path: Path) -> Callable[..., MaskedTokenData]:
    def build(train: str | None, kind: Any = MaskedTokenData, **options: Any) -> Any:
        defaults: dict[str, Any] = {"tokenizer": masks, "cache_dir": str(tmp_path / "cache"), "max_length": 16}
        defaults |= {"max_tokens": 64, "validation_fraction": 0.0}
        return kind(train, **(defaults | options))

    return build


def batches(data: Any, loader: Any = None) -> list[Any]:
    return list(loader or data.train_dataloader())


def document_ids(data: Any, name: str) -> list[list[int]]:
    """The documents of a split, from its pieces."""
    rows = data.split(name).rows
    found: dict[int, list[int]] = {}
    for number, document in enumerate(rows.pieces.document.tolist()):
        found.setdefault(document, []).extend(rows[[number]]["tokens"].tolist())
    return list(found.values())


def encoded(masks: str, lines: list[str]) -> list[list[int]]:
    return [load_tokenizer(masks)(line, add_special_tokens=False)["input_ids"] for line in lines]


# Where documents come from


def test_text_is_made_a_store_once(corpus: Any, make: Any, masks: str, tmp_path: Path) -> None:
    lines = texts(30)
    data = make(corpus(lines))
    assert document_ids(data, "train") == encoded(masks, lines)
    [made] = (tmp_path / "cache" / "corpora").iterdir()
    stamp = (made / "manifest.json").stat().st_mtime_ns
    assert document_ids(make(corpus(lines)), "train") == encoded(masks, lines)  # written again: other time, new store
    kept = [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()]
    again = make(str(tmp_path / "corpus.txt"))
    again.prepare_data()
    assert [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()] == kept
    assert (made / "manifest.json").stat().st_mtime_ns == stamp


def test_a_store_is_taken_as_it_is(corpus: Any, make: Any, masks: str, tmp_path: Path) -> None:
    lines = texts(10)
    prepare([corpus(lines)], load_tokenizer(masks), tmp_path / "store")
    for tokenizer in (masks, None):
        data = make(str(tmp_path / "store"), tokenizer=tokenizer)
        assert document_ids(data, "train") == encoded(masks, lines)
        assert data.vocabulary == len(SPECIAL) + len(WORDS)
    assert not (tmp_path / "cache" / "corpora").exists()


def test_other_formats(make: Any, masks: str, tmp_path: Path) -> None:
    lines = texts(6)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": line}) + "\n" for line in lines), encoding="utf-8")
    assert document_ids(make(str(path), text_column="body"), "train") == encoded(masks, lines)
    whole = tmp_path / "whole.txt"
    whole.write_text("\n\n".join(["\n".join(lines[:3]), "\n".join(lines[3:])]), encoding="utf-8")
    found = document_ids(make(str(whole), documents="block"), "train")
    assert found == encoded(masks, ["\n".join(lines[:3]), "\n".join(lines[3:])])
    doubled = tmp_path / "doubled.txt"
    doubled.write_text("\n".join(lines * 2), encoding="utf-8")
    data = make(str(doubled), deduplicate="exact")
    assert document_ids(data, "train") == encoded(masks, lines)
    assert any("6 duplicates left out" in note for note in data.split("train").facts["notes"])


def test_a_tokenizer_is_trained(corpus: Any, make: Any, tmp_path: Path) -> None:
    path = corpus(["the quick brown fox jumps over the lazy dog"] * 20)
    sizes = {"wordpiece": 60, "bpe": 300, "unigram": 40}
    for kind, size in sizes.items():
        data = make(path, tokenizer=f"trained:{kind}:{size}")
        assert data.vocabulary is not None
        assert data.vocabulary <= size
        assert data.split("train").facts["documents"] == 20
    kept = sorted(p.name for p in (tmp_path / "cache" / "tokenizers").iterdir() if p.is_dir())
    assert len(kept) == 3
    make(path, tokenizer="trained:bpe:300").tokenizer  # noqa: B018
    assert sorted(p.name for p in (tmp_path / "cache" / "tokenizers").iterdir() if p.is_dir()) == kept


# Splits


def test_documents_are_cut_off_by_their_text(corpus: Any, make: Any, masks: str) -> None:
    lines = texts(60, longest=30)
    path = corpus([*lines, *lines[:30]])
    data = make(path, validation_fraction=0.2, test_fraction=0.1)
    found = {name: [str(ids) for ids in document_ids(data, name)] for name in ("train", "validation", "test")}
    assert list(data.splits) == ["train", "validation", "test"]
    assert sorted(sum(found.values(), [])) == sorted(map(str, encoded(masks, [*lines, *lines[:30]])))
    sets = {name: set(ids) for name, ids in found.items()}
    assert not sets["train"] & sets["validation"] | sets["train"] & sets["test"] | sets["validation"] & sets["test"]
    assert 18 <= len(found["validation"]) <= 19
    assert 9 <= len(found["test"]) <= 10
    other = make(path, validation_fraction=0.2, test_fraction=0.1, split_seed=1)
    assert document_ids(other, "validation") != document_ids(data, "validation")


def test_at_least_a_document(corpus: Any, make: Any) -> None:
    data = make(corpus(texts(9)), validation_fraction=0.01)
    assert data.split("validation").facts["documents"] == 1
    assert data.split("train").facts["documents"] == 8


def test_named_splits(corpus: Any, make: Any, masks: str) -> None:
    parts = {name: texts(5, seed) for seed, name in enumerate(("train", "validation", "test"))}
    paths = {name: corpus(lines, f"{name}.txt") for name, lines in parts.items()}
    data = make(**paths, validation_fraction=0.5)
    assert {name: document_ids(data, name) for name in data.splits} == {
        name: encoded(masks, lines) for name, lines in parts.items()
    }


# Batches


@pytest.mark.parametrize("kind", [MaskedTokenData, NextTokenData])
def test_plans_are_packed_and_complete(corpus: Any, make: Any, kind: Any) -> None:
    data = make(corpus(texts(80)), kind)
    plan = data.training_plan()
    assert isinstance(plan, PackedPlan)
    assert data.training_plan() is plan
    found = batches(data)
    assert len(found) == plan.micro_batches()
    assert sorted(i for b in found for i in b.index.tolist()) == list(range(len(data.split("train"))))
    assert all(len(b.input_ids) <= 64 for b in found)
    assert sum(len(b.input_ids) for b in found) == int(data.split("train").lengths.sum())
    for batch in found:
        assert batch.lengths.tolist() == data.split("train").lengths[batch.index.numpy()].tolist()
        assert int(batch.lengths.max()) <= 16


def test_other_plans(corpus: Any, make: Any) -> None:
    path = corpus(texts(40))
    for options in ({"batch_size": 4}, {"batch_size": 4, "max_tokens": None}, {"layout": "padded"}):
        data = make(path, **options)
        assert isinstance(data.training_plan(), TrainingPlan)
        found = batches(data)
        assert sorted(i for b in found for i in b.index.tolist()) == list(range(len(data.split("train"))))
        assert max(b.size for b in found) <= options.get("batch_size", 64)


@pytest.mark.parametrize("kind", [MaskedTokenData, NextTokenData])
def test_padded_batches_say_the_same(corpus: Any, make: Any, kind: Any) -> None:
    path = corpus(texts(30))
    flat, padded = (make(path, kind, layout=layout) for layout in ("flat", "padded"))
    rows = [3, 8, 1]
    columns = flat.split("train").rows[rows] | {"index": rows, "epoch": 0}
    one, other = flat.collate(columns), padded.collate(columns)
    assert one.valid is None
    assert other.valid is not None
    assert torch.equal(one.input_ids, other.input_ids[other.valid])
    places = one.labels.get("positions", torch.arange(len(one.input_ids)))
    assert torch.equal(one.input_ids[places], other.input_ids[other.labels["positions"]])
    assert torch.equal(one.labels["targets"], other.labels["targets"])
    assert torch.equal(one.position_ids[places], other.position_ids[other.labels["positions"]])
    assert torch.equal(one.segments[places], other.segments[other.labels["positions"]])


def seen(batch: Any) -> str:
    return str([batch.index.tolist(), batch.input_ids.tolist(), {k: v.tolist() for k, v in batch.labels.items()}])


class Standing:
    """As much of a trainer as a data module looks at."""

    def __init__(self, epoch: int, done: int, rank: int = 0, ranks: int = 1, accumulation: int = 1) -> None:
        self.current_epoch, self.max_epochs = epoch, 3
        self.global_rank, self.world_size, self.accumulate_grad_batches = rank, ranks, accumulation
        progress = type("Progress", (), {"current": type("Current", (), {"ready": done})})
        self.fit_loop = type("Loop", (), {"epoch_loop": type("Epoch", (), {"batch_progress": progress})})


@pytest.mark.parametrize("kind", [MaskedTokenData, NextTokenData])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere(corpus: Any, make: Any, kind: Any, workers: int) -> None:
    path = corpus(texts(60))

    def rest(epoch: int, done: int, workers: int = 0) -> list[str]:
        data = make(path, kind, num_workers=workers)
        data.trainer = Standing(epoch, done)
        return [seen(batch) for batch in data.train_dataloader()]

    whole = [rest(epoch, 0) for epoch in range(3)]
    assert whole[0] != whole[1]
    for epoch, done in ((0, 3), (1, 0), (2, len(whole[2]) - 1)):
        assert rest(epoch, done, workers) == whole[epoch][done:]


def test_ranks_share_the_batches(corpus: Any, make: Any) -> None:
    path = corpus(texts(60))

    def of(rank: int, ranks: int, accumulation: int) -> list[str]:
        data = make(path)
        data.trainer = Standing(1, 0, rank, ranks, accumulation)
        return [seen(batch) for batch in data.train_dataloader()]

    alone = of(0, 1, 4)
    assert len(alone) % 4 == 0
    assert [one for step in zip(of(0, 2, 2), of(1, 2, 2), strict=True) for one in step] == alone


def test_data_modules_go_to_workers(corpus: Any, make: Any) -> None:
    data = make(corpus(texts(20)))
    rows = data.split("train").rows
    assert (pickle.loads(pickle.dumps(rows))[[2, 5]]["tokens"] == rows[[2, 5]]["tokens"]).all()


def test_lightning_runs_it(corpus: Any, make: Any) -> None:
    data = make(corpus(texts(30)), validation_fraction=0.2)

    class Counting(L.LightningModule):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.train_tokens, self.validated = [], []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.train_tokens.append(len(batch.input_ids))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.validated += batch.index.tolist()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])

    module = Counting()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    assert sum(module.train_tokens) == 2 * int(data.split("train").lengths.sum())
    assert sorted(module.validated) == sorted(2 * list(range(len(data.split("validation")))))


# Reports


def shown(value: Any) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(value)
    return capture.get()


def test_table_and_plan(corpus: Any, make: Any) -> None:
    lines = ["w1 w2 w3 w4", "w5 w6", " ".join(WORDS[:40])] * 20
    data = make(corpus(lines), validation_fraction=0.4)
    table = shown(report.data_table(data))
    assert "documents" in table
    assert "pieces" in table
    assert "cut off" in table
    assert report.notes(data.splits) == []
    line = report.plan_line(data)
    assert re.search(r"\d+ micro-batches an epoch of [\d.]+ pieces and \d+ tokens", line), line
    assert re.search(r"\(packed to [\d.]+% of 64, none cropped\)", line), line


def test_predict_rows_are_told_apart_in_the_table(corpus: Any, make: Any, write_rows: Any) -> None:
    data = make(corpus(texts(9)), predict=write_rows([{"text": "w1 [MASK]"}]))
    table = shown(report.data_table(data))
    assert "predict" in table
    assert "over 16" in table


# A saved model


@pytest.mark.parametrize("kind", [MaskedTokenData, NextTokenData])
def test_a_saved_model_reads_the_same(corpus: Any, make: Any, masks: str, kind: Any) -> None:
    options = {"mask_rate": 0.4, "masking": "word"} if kind is MaskedTokenData else {"document_end": "none"}
    path = corpus(texts(20))
    data = make(None, kind, test=path, **options)
    record = json.loads(json.dumps(data.record()))
    again = kind.for_model(masks, LabelSpace(()), record, test=path)
    again.evaluation_tokens = data.evaluation_tokens
    assert again.label_space == LabelSpace(())
    assert [seen(b) for b in again.test_dataloader()] == [seen(b) for b in data.test_dataloader()]


# What is wrong, in a sentence


def refused(message: str) -> Any:
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


def test_no_text(corpus: Any, make: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no documents in it"):
        make(corpus(["", " "])).split("train")
    with pytest.raises(UserError, match="no such file or folder"):
        make(str(tmp_path / "missing.txt")).split("train")
    with pytest.raises(UserError, match="1 distinct texts, too few to cut off validation rows"):
        make(corpus(["w1 w2"] * 3), validation_fraction=0.1).split("train")


def test_another_tokenizer(corpus: Any, make: Any, masks: str, tokenizer: str, tmp_path: Path) -> None:
    prepare([corpus(texts(5))], load_tokenizer(masks), tmp_path / "store")
    with pytest.raises(UserError, match="was made with another tokenizer than the one given"):
        make(str(tmp_path / "store"), tokenizer=tokenizer).split("train")


def test_a_store_at_home(corpus: Any, make: Any, masks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = texts(5)
    prepare([corpus(lines)], load_tokenizer(masks), tmp_path / "store")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert document_ids(make("~/store"), "train") == encoded(masks, lines)
    assert make("~/store", tokenizer=None).vocabulary == len(SPECIAL) + len(WORDS)


def test_a_store_that_is_not_finished(make: Any, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    line = json.dumps({"command": "llm-arch prepare --input x"})
    (tmp_path / "store" / "journal.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match="not finished; go on with llm-arch prepare --input x"):
        make(str(tmp_path / "store")).split("train")


def test_budgets_below_a_piece(make: Any) -> None:
    with refused(
        "data.max_tokens is 15, but a single piece may have data.max_length 16 tokens; raise the one or lower the other"
    ):
        make("x", max_tokens=15)


def test_packed_batches_are_not_grouped(make: Any) -> None:
    with refused(
        "data.group_by_length is not for packed batches; leave it out, or set data.layout padded or data.batch_size"
    ):
        make("x", group_by_length=True)
    assert make("x", group_by_length=True, batch_size=4).group_by_length


def test_tokenizers_that_are_none(corpus: Any, make: Any, masks: str, tmp_path: Path) -> None:
    path = corpus(texts(5))
    for name in ("trained:bytes:300", "trained:bpe", "trained:bpe:many"):
        with refused(
            f"data.tokenizer is {name!r}; to train one write trained:KIND:SIZE with a kind out of "
            f"wordpiece, bpe, unigram, such as trained:bpe:8192"
        ):
            make(path, tokenizer=name).split("train")
    with refused(
        "data.tokenizer is not set, and the backbone names none: name a tokenizer directory, or train one with "
        "--data.tokenizer trained:bpe:8192"
    ):
        make(path, tokenizer=None).split("train")
    with refused("data.tokenizer is 'trained:bpe:300', but there is no data.train to train it on"):
        make(None, test=path, tokenizer="trained:bpe:300").split("test")
    prepare([path], load_tokenizer(masks), tmp_path / "store")
    data = make(str(tmp_path / "store"), tokenizer="trained:bpe:300")
    assert data.tokenizer.get_vocab() == load_tokenizer(masks).get_vocab()
    assert len(data.split("train")) > 0
