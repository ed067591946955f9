"""Label spaces, batches and pooling, losses, and parts that remember how they were built."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_arch.data.collate import make_batch
from llm_arch.types import Batch, Configured, Hidden, LabelSpace, Loss, Prediction, UserError

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def batch_of(lengths: list[int], layout: str) -> Batch:
    rows = [[7] * n for n in lengths]
    types = [[0] * n for n in lengths]
    columns = {"input_ids": rows, "token_type_ids": types, "index": list(range(len(rows)))}
    return make_batch(columns, layout, {"label": torch.zeros(len(rows))})


def place(values: Tensor, batch: Batch, rest: float) -> Tensor:
    """States in the batch's layout, with `rest` where there is no token."""
    if batch.valid is None:
        return values
    grid = torch.full((len(batch.valid), values.shape[1]), rest, dtype=values.dtype)
    grid[batch.valid] = values
    return grid


POOLS = {
    "first": lambda s: s[0],
    "last": lambda s: s[-1],
    "mean": lambda s: s.mean(0),
    "max": lambda s: s.max(0).values,
}


@pytest.mark.parametrize("pooling", list(POOLS))
@pytest.mark.parametrize("layout", ["flat", "padded"])
@given(lengths=LENGTHS, rest=st.sampled_from([0.0, 1e6, -1e6]))
@settings(max_examples=25, deadline=None)
def test_pooling_is_that_of_each_sequence(pooling: Any, layout: str, lengths: list[int], rest: float) -> None:
    values = torch.randn(sum(lengths), 3, dtype=torch.float64) - 5  # negative, so that a zero would win the maximum
    batch = batch_of(lengths, layout)
    states = place(values, batch, rest).requires_grad_()
    pooled = batch.pool(states, pooling)
    expected = torch.stack([POOLS[pooling](part) for part in values.split(lengths)])
    torch.testing.assert_close(pooled, expected)
    upstream = torch.randn_like(pooled)
    (gradient,) = torch.autograd.grad(pooled, states, upstream)
    naive = values.requires_grad_()
    outs = torch.stack([POOLS[pooling](part) for part in naive.split(lengths)])
    (wanted,) = torch.autograd.grad(outs, naive, upstream)
    torch.testing.assert_close(gradient if batch.valid is None else gradient[batch.valid], wanted)
    if batch.valid is not None:
        assert not gradient[~batch.valid].any()


def test_unknown_pooling_raises() -> None:
    with pytest.raises(KeyError, match="median"):
        batch_of([1], "flat").pool(torch.zeros(1, 2), "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_batch_moves_whole(layout: str) -> None:
    batch = replace(batch_of([2, 3], layout), texts={"answers": [["a"], []]})
    moved = batch.to("meta")
    assert moved.size == batch.size == 2
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, Tensor):
            assert after.device.type == "meta"
            assert after.shape == before.shape
        elif field.name == "rows":
            assert after == before == 2
        elif field.name == "texts":
            assert after is before
        elif field.name != "labels":
            assert after is None
    assert moved.labels["label"].device.type == "meta"
    assert batch.input_ids.device.type == "cpu"


@pytest.mark.parametrize(
    ("lengths", "short_from"),
    [([200, 3, 129, 128, 1], (3, 332)), ([5, 128], (0, 0)), ([4, 129], (2, 133)), ([300], (1, 300))],
)
def test_a_device_is_not_asked_how_long_sequences_are(lengths: list[int], short_from: tuple[int, int]) -> None:
    batch = batch_of(lengths, "flat")
    moved = batch.to("meta")  # whose numbers nobody can read
    for one in (batch, moved):
        assert one.longest == max(lengths)
        assert one.short_from == short_from
    assert replace(batch, lengths=batch.lengths + 1).longest == max(lengths) + 1


# Labels


def test_label_spaces_survive_json() -> None:
    for space in (
        LabelSpace(("a", "ü")),
        LabelSpace(("a", "b"), (3, 0)),
        LabelSpace(("a",), None, multi=True),
        LabelSpace((), moments=(0.1 + 0.2, 1 / 3)),
    ):
        assert LabelSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_index_is_the_place_of_the_name() -> None:
    space = LabelSpace(tuple(f"l{i}" for i in range(15)))
    assert len(space) == 15
    assert [space.index(name) for name in space.names] == list(range(15))
    with pytest.raises(UserError, match=r"unknown label 'x'; the labels are: l0, .*, l11 …$"):
        space.index("x")
    with pytest.raises(UserError, match="the labels are: a, b$"):
        LabelSpace(("a", "b")).index("c")


def test_impossible_label_spaces() -> None:
    with pytest.raises(UserError, match=r"label names must be distinct, got \['a', 'a'\]"):
        LabelSpace(("a", "a"))
    with pytest.raises(UserError, match="2 labels but 1 counts"):
        LabelSpace(("a", "b"), (1,))


# Small things


def test_the_mean_of_a_loss() -> None:
    assert float(Loss(torch.tensor(6.0), 4).mean) == 1.5
    assert float(Loss(torch.tensor(6.0), torch.tensor(3.0)).mean) == 2.0


def test_hidden_has_no_layers_unless_asked() -> None:
    assert Hidden(torch.zeros(1, 1)).layers is None


@dataclass(frozen=True)
class Colour(Prediction):
    name: str


def test_a_prediction_without_its_number() -> None:
    assert Colour(3, "red").to_dict() == {"name": "red"}


class Part(Configured, nn.Module):
    def __init__(self, size: int, *, rate: float = 0.5, names: tuple[str, ...] = ()) -> None:
        super().__init__()


class Longer(Part):
    def __init__(self, size: int, extra: str = "x") -> None:
        super().__init__(size * 2, rate=0.1)


def test_parts_remember_their_own_arguments() -> None:
    assert Part(3).init_args == {"size": 3}
    assert Part(size=3, rate=0.1).init_args == {"size": 3, "rate": 0.1}
    assert Longer(4, "y").init_args == {"size": 4, "extra": "y"}
    assert Part(3).class_path == f"{__name__}.Part"
    assert list(Part(3).state_dict()) == []


def test_wrong_arguments_still_raise_type_errors() -> None:
    with pytest.raises(TypeError, match="colour"):
        Part(3, colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="size"):
        Part()  # type: ignore[call-arg]
