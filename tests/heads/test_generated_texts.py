"""The metric over collected texts: the same for any cut into batches and ranks, in any order."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from llm_arch.heads.generated_texts import GeneratedTexts
from llm_arch.heads.text_metrics import METRICS, text_metrics
from llm_arch.types import UserError

ROWS = [
    ("the cat sat on the mat .", "a cat sat on the mat .", ""),
    ("", "nothing", "a prompt"),
    ("ünï我😀\n\0", "ünï", "p"),
    ("    return x", "    return x + 1", "def f(x):\n"),
    ("half \ud83d", "half", "\udcff"),
    ("same", "same", "same"),
    ("same", "same", "same"),
]


def counted(rows: list[tuple[str, str, str]], cut: int = 2) -> GeneratedTexts:
    metric = GeneratedTexts(tuple(METRICS))
    for start in range(0, len(rows), cut):
        metric.update(*(list(column) for column in zip(*rows[start : start + cut], strict=True)))
    return metric


def test_texts_come_back_as_they_were() -> None:
    assert counted(ROWS).rows() == sorted(ROWS)


def test_numbers_are_those_of_the_functions_in_any_order() -> None:
    columns = [list(column) for column in zip(*ROWS, strict=True)]
    wanted = text_metrics(tuple(METRICS), columns[0], columns[1], prompts=columns[2])
    for seed in range(5):
        rows = random.Random(seed).sample(ROWS, len(ROWS))
        found = counted(rows, cut=seed + 1).compute()
        assert found == {name: torch.tensor(value) for name, value in wanted.items()}
        assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("first", [0, 3, len(ROWS)])
def test_ranks(first: int) -> None:
    """What one of two ranks computes when the other's state is gathered too; a rank may have no rows."""
    one, other = counted(ROWS[:first]), counted(ROWS[first:])
    theirs = torch.cat(other.texts) if other.texts else torch.tensor([], dtype=other.dtype)

    def gather(value: Tensor, group: object = None) -> list[Tensor]:
        assert value.dtype == theirs.dtype  # else a real gather would hang or fail
        return [value, theirs]

    one.dist_sync_fn, one.distributed_available_fn = gather, lambda: True
    one.update([], [])
    assert one.compute() == counted(ROWS).compute()
    assert len(one.rows()) == first  # its own again


def test_a_lower_default_type_loses_no_byte() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric = GeneratedTexts(["exact_match"])
        metric.update(["".join(map(chr, range(1, 2000)))], [""])
        assert metric.rows()[0][0] == "".join(map(chr, range(1, 2000)))
    finally:
        torch.set_default_dtype(torch.float32)


class Both(Metric):
    """As a head's metric would hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.texts = MeanMetric(), GeneratedTexts(["exact_match"])

    def update(self, loss: Tensor, *texts: list[str]) -> None:
        self.loss.update(loss)
        self.texts.update(*(texts or ([], [])))

    def compute(self) -> dict[str, Tensor]:
        return {"loss": self.loss.compute(), **self.texts.compute()}

    def reset(self) -> None:
        super().reset()
        self.loss.reset()
        self.texts.reset()


def test_within_another_metric() -> None:
    metric = Both()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update(torch.tensor(2.0))
        assert metric.compute() == {"loss": 2}
        metric.update(torch.tensor(4.0), ["a", "b"], ["a", "c"])
        assert metric.compute() == {"loss": 3, "exact_match": 0.5}
        metric.reset()
        metric.update(torch.tensor(1.0), ["a"], ["a"])
        assert metric.compute() == {"loss": 1, "exact_match": 1}


def test_arguments() -> None:
    with pytest.raises(UserError, match=r"^unknown text metric 'x'; there are: "):
        GeneratedTexts(["bleu", "x"])
    assert GeneratedTexts(["bleu"], "zh").signatures()["bleu"].count("tok:zh") == 1
    assert GeneratedTexts(["parses"]).signatures() == {}
