"""Texts with numbers: what is stored, mean and deviation of the training rows, and what is said of bad rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_arch.data import RegressionData
from llm_arch.data.sources import Source
from llm_arch.types import LabelSpace, UserError

Make = Callable[..., RegressionData]
Write = Callable[..., str]
HINT = " (or leave such rows out with --data.on_bad_row skip)"


@pytest.fixture
def make(words: str, tmp_path: Path) -> Make:
    def make_data(train: str | None = None, **options: Any) -> RegressionData:
        defaults: dict[str, Any] = {
            "tokenizer": words,
            "cache_dir": str(tmp_path / "cache"),
            "validation_fraction": 0.0,
        }
        return RegressionData(train, **(defaults | options))

    return make_data


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def numbered(targets: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"w{i}", "target": target} for i, target in enumerate(targets)]


def test_stored_rows_and_batches(make: Make, write_rows: Write, id_of: dict[str, int]) -> None:
    path = write_rows([{"a": "w1", "b": "w2 w3", "stars": 4}, {"a": "w4", "b": "w5", "stars": "-2.5"}])
    data = make(path, text_column="a", text_pair_column="b", target_column="stars")
    stored, _ = data.load_source(path)
    assert (stored["text"][:], stored["text_pair"][:]) == (["w1", "w4"], ["w2 w3", "w5"])
    assert stored["target"][:] == [4.0, -2.5]
    assert stored["input_ids"][0] == [id_of[name] for name in ("[CLS]", "w1", "[SEP]", "w2", "w3", "[SEP]")]
    (batch,) = data.train_dataloader()
    assert batch.labels["target"].dtype == torch.float32
    by_row = dict(zip(batch.index.tolist(), batch.labels["target"].tolist(), strict=True))
    assert by_row == {0: 4.0, 1: -2.5}
    unlabelled = make(text_column="a", target_column="stars").load_source(path, labelled=False)[0]
    assert unlabelled["target"][:] == [None, None]
    assert unlabelled["text_pair"][:] == [None, None]


def test_moments_are_those_of_the_training_rows_alone(make: Make, write_rows: Write) -> None:
    targets = [float(i * i) for i in range(60)]
    path, other = write_rows(numbered(targets)), write_rows(numbered([1e6]), "other.jsonl")
    whole = make(path, validation=other).label_space
    assert whole == LabelSpace((), moments=(pytest.approx(np.mean(targets)), pytest.approx(np.std(targets))))
    data = make(path, validation_fraction=0.4)
    left = data.split("train").column("target")
    assert 0 < len(left) < 60
    assert data.label_space.moments == (pytest.approx(np.mean(left)), pytest.approx(np.std(left)))
    assert make(path, validation_fraction=0.4).label_space == data.label_space


@pytest.mark.parametrize("targets", [[3, 3, 3], [3], ["2.50", 2.5], [1e9, 1e9 + 1]])
def test_one_number_throughout_teaches_nothing(make: Make, write_rows: Write, targets: list[Any]) -> None:
    path = write_rows(numbered(targets))
    message = (
        f"{path}: 'target' is {float(targets[0]):g} in all training rows, so there is nothing to learn; "
        "name another column with --data.target_column"
    )
    with pytest.raises(UserError, match=exactly(message)):
        make(path).label_space  # noqa: B018


def test_where_nothing_is_trained_there_are_no_moments(make: Make, write_rows: Write) -> None:
    data = make(test=write_rows(numbered([3, 3])))
    assert data.label_space == LabelSpace(())
    assert len(data.splits["test"]) == 2


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"text": ""}, "'text' is empty; fix the row"),
        ({"text": 5}, "'text' holds int instead of text; fix the row"),
        ({"target": None}, "has no 'target'"),
        ({"target": "much"}, "'target' holds 'much', which is no number; fix the row"),
        ({"target": ""}, "'target' is empty; fix the row"),
        ({"target": "nan"}, "'target' holds 'nan', which is no finite number; fix the row"),
        ({"target": float("inf")}, "'target' holds inf, which is no finite number; fix the row"),
        ({"target": [1]}, "'target' holds [1], which is no number; fix the row"),
    ],
)
def test_a_bad_row(make: Make, write_rows: Write, change: dict[str, Any], fault: str) -> None:
    rows = numbered([1, 2])
    path = write_rows([rows[0], rows[1] | change])
    with pytest.raises(UserError, match=exactly(f"{path}, line 2: {fault}{HINT}")):
        make().load_source(path)
    facts = make(on_bad_row="skip").load_source(path)[1]
    assert (facts["rows"], facts["bad"]) == (1, [[2, fault]])


def test_an_empty_second_text_is_a_bad_row(make: Make) -> None:
    data = make(text_pair_column="b")
    assert data.fault({"text": "w1", "b": " ", "target": 1}, True) == "'b' is empty; fix the row"


def test_wrong_column(make: Make, write_rows: Write) -> None:
    path = write_rows([{"text": "w1", "stars": 1}])
    with pytest.raises(
        UserError, match=r"has no column 'target'; it has: text, stars\. Name yours with --data\.text_c"
    ):
        make().load_source(path)


def test_record_reads_rows_alike(make: Make) -> None:
    data = make(text_column="a", text_pair_column="b", target_column="stars", max_length=32)
    again = RegressionData.for_model("x", LabelSpace((), moments=(1.0, 2.0)), data.record())
    assert (again.record(), again.columns) == (data.record(), data.columns)
    assert again.label_space.moments == (1.0, 2.0)


def test_the_sample_is_as_it_should_be() -> None:
    data = RegressionData(text_pair_column="text_pair", target_column="score")
    texts: dict[str, set[str]] = {}
    for split, count in (("train", 99), ("validation", 16), ("test", 37)):
        rows = [row.values for row in Source(f"sample:similarity:{split}").rows()]
        assert [data.fault(values, True) for values in rows] == [None] * count
        assert all(0 <= values["score"] <= 5 for values in rows)
        texts[split] = {values[name] for values in rows for name in ("text", "text_pair")}
    # No sentence of the test rows is seen in training.
    assert not texts["test"] & (texts["train"] | texts["validation"])
