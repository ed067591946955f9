"""From the arguments to splits and loaders, with a trainer and without."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_arch.data import TextClassificationData
from llm_arch.data import format as format_module
from llm_arch.data.loader import RowNumbers
from llm_arch.types import Batch, LabelSpace, UserError

Make = Callable[..., TextClassificationData]
Write = Callable[..., str]


def make_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Distinct texts of one to eight words."""
    return [
        {"text": " ".join(f"w{(i + j) % 96}" for j in range(1 + i * 7 % 8)) + f" n{i}", "label": "ab"[i % 2]}
        for i in range(first, first + count)
    ]


def trainer_of(
    rank: int = 0,
    ranks: int = 1,
    accumulation: int = 1,
    epochs: int | None = 2,
    epoch: int = 0,
    done: int = 0,
    root: str = ".",
    own_sampler: bool = True,
) -> Any:
    """As much of a trainer as a data module looks at."""
    ready = SimpleNamespace(ready=done)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=ready))
    return SimpleNamespace(
        global_rank=rank,
        world_size=ranks,
        accumulate_grad_batches=accumulation,
        max_epochs=epochs,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=progress),
        default_root_dir=root,
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=not own_sampler),
    )


def indices(loader: Any) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "data.validation_fraction must be in [0, 1), got 1.0"),
        ({"test_fraction": -0.1}, "data.test_fraction must be in [0, 1), got -0.1"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            "data.validation_fraction and data.test_fraction together leave nothing to train on",
        ),
        ({"max_length": 3}, "data.max_length must be at least 4, got 3"),
        ({"evaluation_tokens": 0}, "data.evaluation_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"batch_size": None}, "give data.batch_size (rows a batch) or data.max_tokens (tokens a batch)"),
    ],
)
def test_impossible_arguments(make_data: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_data(**options)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_ARCH_CACHE", str(tmp_path / "given"))
    assert TextClassificationData().cache == tmp_path / "given"


# Splits


def test_named_splits(make_data: Make, write_rows: Write) -> None:
    paths = {name: write_rows(make_rows(n), f"{name}.jsonl") for name, n in (("validation", 4), ("test", 3))}
    train = write_rows(make_rows(8))
    data = make_data(train, **paths, predict=paths["test"], validation_fraction=0.4, test_fraction=0.4)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 8,
        "validation": 4,
        "test": 3,
        "predict": 3,
    }
    assert data.splits["validation"].source == paths["validation"]
    assert data.splits is data.splits


def test_cut_splits(make_data: Make, write_rows: Write) -> None:
    path = write_rows(make_rows(20) * 2)
    options = {"validation_fraction": 0.2, "test_fraction": 0.1}
    data = make_data(path, **options)
    texts = {name: split.column("text") for name, split in data.splits.items()}
    assert {name: len(column) for name, column in texts.items()} == {"train": 28, "validation": 8, "test": 4}
    assert sum(len(set(column)) for column in texts.values()) == 20
    again, other = make_data(path, **options), make_data(path, **options, split_seed=1)
    assert again.splits["test"].column("text") == texts["test"]
    assert set(other.splits["validation"].column("text")) != set(texts["validation"])


def test_a_named_split_is_not_cut(make_data: Make, write_rows: Write) -> None:
    test = write_rows(make_rows(3), "test.jsonl")
    data = make_data(write_rows(make_rows(20)), test=test, validation_fraction=0.1, test_fraction=0.5)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "validation": 2, "test": 3}


def test_no_such_split(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(make_rows(4)))
    for name in ("validation", "test", "predict"):
        with pytest.raises(UserError, match=rf"^there are no {name} rows; name a file with --data\.{name}$"):
            data.split(name)
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match=r"^there are no train rows"):
        make_data(test=write_rows(make_rows(4)), labels=["a", "b"]).setup("fit")


def test_an_empty_split_names_its_file(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(make_rows(4)), validation=write_rows([], "none.jsonl"))
    with pytest.raises(UserError, match=r"none\.jsonl has no rows to use; add some, or name another file$"):
        data.prepare_data()


def test_prepare_data_reads_everything(
    make_data: Make, write_rows: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, predict = write_rows(make_rows(4)), write_rows([{"text": "w1"}], "predict.jsonl")
    make_data(train, predict=predict).prepare_data()
    monkeypatch.setattr(format_module, "encoded_rows", lambda *args: pytest.fail("read again"))
    data = make_data(train, predict=predict)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "predict": 1}


# Setup


def test_bad_rows_are_listed(make_data: Make, write_rows: Write, tmp_path: Path) -> None:
    train = write_rows([*make_rows(12), {"text": "", "label": "ä"}, {"text": "w1", "label": None}])
    test = write_rows([{"text": 1, "label": "a"}, *make_rows(2)], "test.jsonl")
    data = make_data(train, test=test, on_bad_row="skip", validation_fraction=0.2)
    data.setup("fit")  # nowhere to list them
    data.trainer = trainer_of(root=str(tmp_path / "new" / "run"))
    data.setup("fit")
    lines = (tmp_path / "new" / "run" / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": train, "line": 13, "fault": "'text' is empty; fix the row"},
        {"file": train, "line": 14, "fault": "has no 'label'"},
        {"file": test, "line": 1, "fault": "'text' holds int instead of text; fix the row"},
    ]


def test_nothing_is_listed_where_all_is_well(make_data: Make, write_rows: Write, tmp_path: Path) -> None:
    data = make_data(write_rows(make_rows(4)), on_bad_row="skip")
    data.trainer = trainer_of(root=str(tmp_path / "run"))
    data.setup("fit")
    assert not (tmp_path / "run").exists()


def test_lightning_must_not_spread_the_rows_again(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(make_rows(4)))
    data.trainer = trainer_of(ranks=2)
    data.setup("fit")
    data.trainer = trainer_of(ranks=2, own_sampler=False)
    message = "over several devices use llm_arch.Trainer, or L.Trainer(use_distributed_sampler=False)"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        data.setup("fit")
    data.trainer = trainer_of(ranks=1, own_sampler=False)
    data.setup("fit")


# Loaders


def check_batch(batch: Batch, rows: list[dict[str, str]], id_of: dict[str, int], padded: bool) -> None:
    """Every sequence is the row that its index names."""
    assert (batch.valid is not None) == padded
    for i, row in enumerate(batch.index.tolist()):
        ids = batch.input_ids[int(batch.starts[i]) :][: int(batch.lengths[i])].tolist()
        words = rows[row]["text"].split()
        assert ids == [id_of["[CLS]"], *(id_of.get(word, id_of["[UNK]"]) for word in words), id_of["[SEP]"]]
        assert int(batch.labels["label"][i]) == "ab".index(rows[row]["label"])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_training_batches(make_data: Make, write_rows: Write, id_of: dict[str, int], layout: str) -> None:
    rows = make_rows(23)
    data = make_data(write_rows(rows), batch_size=None, max_tokens=30, layout=layout)
    batches = list(data.train_dataloader())
    for batch in batches:
        check_batch(batch, rows, id_of, layout == "padded")
        assert batch.input_ids.numel() <= 30
    assert sorted(flat([b.index.tolist() for b in batches])) == list(range(23))
    assert len(data.train_dataloader()) == len(batches)


@pytest.mark.parametrize("group", [False, True])
def test_every_rank_has_its_share_of_every_epoch(make_data: Make, write_rows: Write, group: bool) -> None:
    data = make_data(write_rows(make_rows(41)), batch_size=4, max_tokens=25, group_by_length=group)
    seen = set()
    for epoch in range(2):
        parts = []
        for rank in range(2):
            data.trainer = trainer_of(rank, 2, accumulation=3, epoch=epoch)
            loader = data.train_dataloader()
            parts.append(indices(loader))
            assert len(loader) == len(parts[-1])
            assert len(loader) % 3 == 0
        assert sorted(flat(parts[0]) + flat(parts[1])) == list(range(41))
        data.trainer = trainer_of(0, 1, accumulation=6, epoch=epoch)
        assert indices(data.train_dataloader()) == [batch for step in zip(*parts, strict=True) for batch in step]
        seen.add(str(parts))
    assert len(seen) == 2


def test_training_goes_on_where_it_stopped(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(make_rows(20)), batch_size=3)
    data.trainer = trainer_of(epoch=1)
    whole = indices(data.train_dataloader())
    assert len(whole) == 7
    loader = data.train_dataloader()
    begun = iter(loader)
    data.trainer = trainer_of(epoch=1, done=4)
    assert indices(begun) == whole[4:]


def test_the_seed_of_the_run_decides_the_order(
    make_data: Make, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(write_rows(make_rows(20)))
    orders = []
    for seed in ("0", "1", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        orders.append(indices(data.train_dataloader()))
    assert orders[0] != orders[1]
    assert orders[1] == orders[2]


@pytest.mark.parametrize(("epochs", "planned"), [(7, 7), (-1, 10**6), (None, 1)])
def test_epochs_that_are_planned(make_data: Make, write_rows: Write, epochs: int | None, planned: int) -> None:
    data = make_data(write_rows(make_rows(6)))
    data.trainer = trainer_of(ranks=2, accumulation=3, epochs=epochs)
    plan = data.training_plan()
    assert (plan.epochs, plan.multiple) == (planned, 6)


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_evaluation_sees_every_row_once(
    make_data: Make, write_rows: Write, id_of: dict[str, int], layout: str, ranks: int
) -> None:
    rows = make_rows(13)
    data = make_data(test=write_rows(rows), labels=["a", "b"], evaluation_tokens=21, layout=layout)
    found, counts = [], set()
    for rank in range(ranks):
        data.trainer = trainer_of(rank, ranks)
        batches = list(data.test_dataloader())
        counts.add(len(batches))
        for batch in batches:
            check_batch(batch, rows, id_of, layout == "padded")
            assert batch.size == 1 or batch.input_ids.numel() <= 21
            found += batch.index.tolist()
    assert len(counts) == 1
    assert sorted(found) == list(range(13))


def test_a_cut_split_is_numbered_by_itself(make_data: Make, write_rows: Write, id_of: dict[str, int]) -> None:
    rows = make_rows(30)
    data = make_data(write_rows(rows), validation_fraction=0.3)
    by_text = {row["text"]: row for row in rows}
    for name, loader in (("train", data.train_dataloader()), ("validation", data.val_dataloader())):
        own = [by_text[text] for text in data.splits[name].column("text")]
        assert len(own) == {"train": 21, "validation": 9}[name]
        batches = list(loader)
        for batch in batches:
            check_batch(batch, own, id_of, False)
        assert sorted(flat([b.index.tolist() for b in batches])) == list(range(len(own)))


def test_prediction_rows_have_no_labels(make_data: Make, write_rows: Write) -> None:
    data = make_data(predict=write_rows([{"text": "w1 w2"}, {"text": "w3"}]))
    (batch,) = data.predict_dataloader()
    assert dict(batch.labels) == {}
    assert sorted(batch.index.tolist()) == [0, 1]


def test_transfer(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(make_rows(4)))
    (batch,) = data.train_dataloader()
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.input_ids.device.type == moved.labels["label"].device.type == "meta"


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_padding_share(make_data: Make, write_rows: Write, layout: str) -> None:
    texts = ["w1", "w1 w2 w3 w4", "w1 w2"]  # 3, 6 and 4 tokens
    data = make_data(write_rows([{"text": text, "label": "a"} for text in texts]), layout=layout)
    assert data.padded_share() == pytest.approx(1 - 13 / 18)
    assert data.padding_share() == (pytest.approx(1 - 13 / 18) if layout == "padded" else 0)


@pytest.mark.parametrize(
    ("limit", "stops"), [(2, False), (1, True), (0, True), (0.39, True), (0.4, False), (1.0, True), (None, False)]
)
def test_max_bad_rows(make_data: Any, write_rows: Any, limit: float | None, stops: bool) -> None:
    """Of all splits together: one of three training rows, one of two test rows; whether read now or kept before."""
    rows = [{"text": "w1", "label": "a"}, {"text": "w2", "label": "b"}, {"text": " ", "label": "a"}]
    train = write_rows(rows, "a.jsonl")
    other = write_rows([{"text": "w3", "label": "a"}, {"label": "a"}], "b.jsonl")
    for _ in range(2):  # the second reads what the first has kept
        data = make_data(train, test=other, on_bad_row="skip", max_bad_rows=limit)
        if not stops:
            assert [len(split) for split in data.splits.values()] == [2, 1]
            continue
        with pytest.raises(UserError, match=r"^2 of 5 rows \(40.0%\) can't be used, and data.max_bad_rows is") as error:
            _ = data.splits
        assert str(error.value).endswith(f"the first is {train}, line 3: 'text' is empty; fix the row")


def test_max_bad_rows_that_can_not_be(make_data: Any) -> None:
    for limit in (-1, 1.5, -0.1):
        with pytest.raises(UserError, match="data.max_bad_rows must be a number of rows or a share in"):
            make_data(on_bad_row="skip", max_bad_rows=limit)
    with pytest.raises(UserError, match="set --data.on_bad_row skip too"):
        make_data(max_bad_rows=3)


def test_a_model_names_no_rows_and_no_places(make_data: Any, words: str) -> None:
    data = make_data()
    labels = LabelSpace(("a", "b"))
    assert type(data).for_model(words, labels, data.record(), test="smart_home:test").sources == {
        "test": "smart_home:test"
    }
    for name in ("train", "predict", "cache_dir", "num_workers"):
        with pytest.raises(UserError, match=f"its record sets data.{name}, as no saved model does"):
            type(data).for_model(words, labels, {**data.record(), name: "x"})


# More training rows


def test_transferred_rows_are_trained_on_and_never_validated(make_data: Make, write_rows: Write) -> None:
    train, more = write_rows(make_rows(40)), write_rows(make_rows(30, first=30), "more.jsonl")
    plain = make_data(train, validation_fraction=0.2, test_fraction=0.1)
    data = make_data(train, transfer=more, validation_fraction=0.2, test_fraction=0.1)

    def texts(one: TextClassificationData, split: str) -> list[Any]:
        return one.split(split).column("text")

    for split in ("validation", "test"):
        assert texts(data, split) == texts(plain, split)
    held_out = {*texts(plain, "validation"), *texts(plain, "test")}
    new = [row["text"] for row in make_rows(30, first=30) if row["text"] not in held_out]
    assert texts(data, "train") == [*texts(plain, "train"), *new]
    assert len(data.split("train").lengths) == len(texts(plain, "train")) + len(new)
    # The batches hold them, by their numbers in the split.
    seen = {}
    for batch in data.train_dataloader():
        ends = (batch.starts + batch.lengths).tolist()
        for index, start, end in zip(batch.index.tolist(), batch.starts.tolist(), ends, strict=True):
            seen[index] = data.tokenizer.decode(batch.input_ids[start:end].tolist(), skip_special_tokens=True).split()[
                0
            ]
    assert sorted(seen) == list(range(len(data.split("train"))))
    assert [seen[i] for i in sorted(seen)] == [text.split()[0] for text in texts(data, "train")]
    facts, before = data.split("train").facts, plain.split("train").facts
    assert facts["rows"] == 70
    assert facts["fingerprint"] != before["fingerprint"]
    lost = 30 - len(new)
    assert lost > 0
    assert f"{len(new)} rows of {more} are trained on too" in facts["notes"]
    assert f"{lost} rows of {more} were left out, since they stand among the validation or test rows" in facts["notes"]
    # As another tokenizer reads them.
    other = data.read_by(str(data.tokenizer_name), 4)
    assert texts(other, "train") == texts(data, "train")
    assert other.max_length == 4


def test_transferred_rows_that_do_not_fit(make_data: Make, write_rows: Write) -> None:
    train = write_rows(make_rows(10))
    strange = write_rows([{"text": "w1", "label": "c"}], "strange.jsonl")
    with pytest.raises(UserError, match=r"strange.jsonl, line 1: the label 'c' .* does not occur in the training rows"):
        make_data(train, transfer=strange).split("train")
    with pytest.raises(UserError, match="has no row that is not among the validation or test rows; name another file"):
        make_data(train, validation=train, transfer=train).split("train")
    with pytest.raises(UserError, match=r"data.transfer is about more training rows; name the first ones with"):
        make_data(transfer=train)
    bad = write_rows([{"text": "w1", "label": "a"}, {"text": "", "label": "a"}], "bad.jsonl")
    data = make_data(train, transfer=bad, on_bad_row="skip", max_bad_rows=0)
    with pytest.raises(UserError, match=r"1 of 12 rows .* the first is .*bad.jsonl, line 2"):
        data.split("train")


@pytest.mark.parametrize(
    ("device", "batches", "asked", "workers"),
    [("cpu", 100, None, 0), ("cuda", 100, None, 2), ("cuda", 10, None, 0), ("cuda", 100, 0, 0), ("cpu", 10, 3, 3)],
)
def test_a_gpu_does_not_wait_for_batches(
    make_data: Any, device: str, batches: int, asked: int | None, workers: int
) -> None:
    data = make_data(num_workers=asked)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert data._workers(batches) == workers


def test_loader_processes_that_are_started_anew_get_no_trainer(make_data: Any, write_rows: Any, rows: Any) -> None:
    """As where processes are spawned: all that a loader hands over is pickled."""
    data = make_data(write_rows(rows(20)), batch_size=4)
    data.setup("fit")
    first = next(iter(data.train_dataloader()))
    data.trainer = SimpleNamespace(
        model=lambda: "can't be pickled", world_size=1, global_rank=0, accumulate_grad_batches=1, max_epochs=1
    )
    loader = data.train_dataloader()
    dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    assert collate.data.trainer is None
    assert data.trainer is not None
    again = collate(dataset.__getitems__(RowNumbers(first.index.tolist(), 0)))
    assert torch.equal(again.input_ids, first.input_ids)
