"""Texts with labels: which labels there are, and what a split may carry."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from llm_arch.data import TextClassificationData
from llm_arch.types import LabelSpace, UserError

Make = Callable[..., TextClassificationData]
Write = Callable[..., str]


def labelled(labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"text": f"w{i}", "label": label} for i, label in enumerate(labels)]


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# The label space


@pytest.mark.parametrize(
    ("labels", "names", "counts"),
    [
        (["on", "off", "on"], ("off", "on"), (1, 2)),
        (["10", "9", "-1", "9"], ("-1", "9", "10"), (1, 2, 1)),
        ([10, 9, 10], ("9", "10"), (1, 2)),
        ([True, False, True], ("False", "True"), (1, 2)),
        (["b", "2", "a", "10"], ("2", "10", "a", "b"), (1, 1, 1, 1)),
        (["nan", "3", "inf", "1", "nan"], ("1", "3", "inf", "nan"), (1, 1, 1, 2)),
        ([" on ", "on"], ("on",), (2,)),
        ([["on"], ["off"]], ("off", "on"), (1, 1)),
    ],
)
def test_labels_are_discovered_in_order(
    make_data: Make, write_rows: Write, labels: list[Any], names: tuple[str, ...], counts: tuple[int, ...]
) -> None:
    for name, order in (("a.jsonl", labels), ("b.jsonl", labels[::-1])):
        assert make_data(write_rows(labelled(order), name)).label_space == LabelSpace(names, counts, False)


def test_given_labels_keep_their_order(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(labelled(["a", "b", "a"])), labels=["b", "never", "a"])
    assert data.label_space == LabelSpace(("b", "never", "a"), (1, 0, 2), False)
    assert len(data.splits["train"]) == 3


def test_given_labels_must_cover_the_training_rows(make_data: Make, write_rows: Write) -> None:
    path = write_rows(labelled(["a", "b", "c", "c"]))
    message = f"{path}, line 3: the label 'c' (2 rows) does not occur in data.labels; known labels: a, b"
    with pytest.raises(UserError, match=exactly(message)):
        make_data(path, labels=["a", "b"]).splits  # noqa: B018


def test_labels_are_given_where_nothing_is_trained(make_data: Make, write_rows: Write) -> None:
    path = write_rows(labelled(["a", "b"]))
    with pytest.raises(UserError, match=exactly("without training rows the labels must be given with data.labels")):
        make_data(test=path).label_space  # noqa: B018
    data = make_data(test=path, labels=["b", "a"])
    assert data.label_space == LabelSpace(("b", "a"), None, False)
    assert len(data.splits["test"]) == 2


# What other splits may carry


@pytest.mark.parametrize("split", ["validation", "test"])
def test_unseen_label(make_data: Make, write_rows: Write, split: str) -> None:
    train = write_rows(labelled([f"l{i:02}" for i in range(14)]))
    other = write_rows(labelled(["l01", "new", "l02", "new"]), "other.jsonl")
    known = ", ".join(f"l{i:02}" for i in range(12)) + " …"
    message = f"{other}, line 2: the label 'new' (2 rows) does not occur in the training rows; known labels: {known}"
    with pytest.raises(UserError, match=exactly(message)):
        make_data(train, **{split: other}).splits  # noqa: B018


@pytest.mark.parametrize("label", [["a", "b"], []])
def test_sets_where_the_training_rows_have_one_label_each(make_data: Make, write_rows: Write, label: list[str]) -> None:
    train = write_rows(labelled(["a", "b"]))
    other = write_rows(labelled(["a", label]), "other.jsonl")
    message = f"{other}, line 2: carries several labels (or none), the training rows one each"
    with pytest.raises(UserError, match=exactly(message)):
        make_data(train, validation=other).splits  # noqa: B018


# Sets of labels

SETS = [("a",), ("c", "a"), (), ("b", "c", "a")]


@pytest.mark.parametrize("delimiter", [None, "|", "; "])
def test_sets_of_labels(make_data: Make, write_rows: Write, delimiter: str | None) -> None:
    cells = [list(names) if delimiter is None else delimiter.join(names) or delimiter for names in SETS]
    data = make_data(write_rows(labelled(cells)), label_delimiter=delimiter)
    assert data.label_space == LabelSpace(("a", "b", "c"), (3, 1, 2), True)
    split = data.splits["train"]
    assert [set(labels) for labels in split.column("labels")] == [set(names) for names in SETS]
    expected = [[1.0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]]
    tensors = data.label_tensors({"labels": split.column("labels")})
    assert set(tensors) == {"label"}
    assert tensors["label"].dtype == torch.float32
    assert tensors["label"].tolist() == expected


@pytest.mark.parametrize("cell", [["a", " a", "b"], "a| a |b||"])
def test_a_set_names_each_label_once(make_data: Make, write_rows: Write, cell: Any) -> None:
    data = make_data(write_rows(labelled([cell])), label_delimiter="|")
    assert data.splits["train"].column("labels") == [["a", "b"]]
    assert data.label_space.counts == (1, 1)


def test_a_delimiter_makes_sets_even_of_single_labels(make_data: Make, write_rows: Write) -> None:
    assert make_data(write_rows(labelled(["a", "b"])), label_delimiter="|").label_space.multi
    assert make_data(test="hub:x:y", labels=["a"], label_delimiter="|").label_space.multi


def test_without_a_delimiter_a_cell_is_one_label(make_data: Make, write_rows: Write) -> None:
    assert make_data(write_rows(labelled(["a|b", "a"]))).label_space == LabelSpace(("a", "a|b"), (1, 1), False)


def test_no_label_is_named_like_the_count_of_sets(make_data: Make, write_rows: Write) -> None:
    space = make_data(write_rows(labelled([[" several"], ["a"], ["a"]]))).label_space
    assert space == LabelSpace(("a", "several"), (2, 1), False)


# Batches


def test_single_labels_as_classes(make_data: Make, write_rows: Write) -> None:
    data = make_data(write_rows(labelled(["b", "c", "a", "b"])))
    tensor = data.label_tensors({"labels": [["b"], ["a"], ["c"]]})["label"]
    assert (tensor.dtype, tensor.tolist()) == (torch.int64, [1, 0, 2])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_batches_of_pairs(make_data: Make, write_rows: Write, id_of: dict[str, int], layout: str) -> None:
    rows = [{"text": "w1", "other": "w2 w3", "label": "x"}, {"text": "w4", "other": "w5", "label": "y"}]
    data = make_data(write_rows(rows), text_pair_column="other", layout=layout)
    (batch,) = data.train_dataloader()
    cls, sep = id_of["[CLS]"], id_of["[SEP]"]
    w = [id_of[f"w{i}"] for i in range(6)]
    expected = {
        0: ([cls, w[1], sep, w[2], w[3], sep], [0, 0, 0, 1, 1, 1]),
        1: ([cls, w[4], sep, w[5], sep], [0, 0, 0, 1, 1]),
    }
    assert sorted(batch.index.tolist()) == [0, 1]
    for i, row in enumerate(batch.index.tolist()):
        here = slice(int(batch.starts[i]), int(batch.starts[i] + batch.lengths[i]))
        assert (batch.input_ids[here].tolist(), batch.token_type_ids[here].tolist()) == expected[row]
        assert int(batch.labels["label"][i]) == row


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ("", "'other' is empty; fix the row"),
        (None, "has no 'other'"),
        (3, "'other' holds int instead of text; fix the row"),
    ],
)
def test_bad_second_text(make_data: Make, write_rows: Write, second: Any, fault: str) -> None:
    path = write_rows([{"text": "w1", "other": second, "label": "x"}])
    for labels in (True, False):
        with pytest.raises(UserError, match=f"line 1: {re.escape(fault)} "):
            make_data(text_pair_column="other").load_source(path, labels)


def test_hub_class_labels(make_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    parts = {
        "train": {"text": ["w1", "w2", "w3"], "label": [1, 0, 1]},
        "test": {"text": ["w4", "w5"], "label": [0, -1]},
    }
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: datasets.Dataset.from_dict(parts[split], features=features)
    )
    data = make_data("hub:some/set:train")
    assert data.label_space == LabelSpace(("no", "yes"), (1, 2), False)
    assert data.splits["train"].column("labels") == [["yes"], ["no"], ["yes"]]
    # -1 is how the hub says that a label is withheld.
    with pytest.raises(UserError, match=r"^hub:some/set:test, line 2: the label '-1' \(1 rows\) does not occur"):
        make_data("hub:some/set:train", test="hub:some/set:test").splits  # noqa: B018


# Reading rows for a trained model


def test_a_model_reads_rows_as_it_was_trained(make_data: Make, write_rows: Write, words: str, tmp_path: Path) -> None:
    rows = [{"a": "w1 w2 w3 w4", "b": "w5", "tags": "x|y"}, {"a": "w1", "b": "w6", "tags": "z"}]
    path = write_rows(rows)
    columns = {"text_column": "a", "text_pair_column": "b", "label_column": "tags", "label_delimiter": "|"}
    trained = make_data(path, max_length=6, **columns)
    assert trained.record() == {"max_length": 6, "language": "en", **columns}
    space = LabelSpace(("z", "y", "x"), None, True)
    again = TextClassificationData.for_model(words, space, trained.record(), test=path, predict=path)
    assert again.label_space is space
    assert again.splits["test"].rows[:] == trained.splits["train"].rows[:]
    (batch,) = again.test_dataloader()
    found = dict(zip(batch.index.tolist(), batch.labels["label"].tolist(), strict=True))
    assert found == {0: [0, 1, 1], 1: [1, 0, 0]}
    (batch,) = again.predict_dataloader()
    assert dict(batch.labels) == {}
