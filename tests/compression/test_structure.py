"""What is kept: composed, written and read back; checked from whomever it comes."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.compression.structure import LARGEST, Shape, Structure
from llm_arch.types import UserError

SHAPE = Shape(3, (4, 2, 4), (6, 0, 5))
SOME = Structure((0, 2), ((1, 3), ()), ((), (0, 4)), SHAPE)


@st.composite
def structures(draw: st.DrawFn, of: Shape) -> Structure:
    def some(size: int) -> tuple[int, ...]:
        return tuple(i for i in range(size) if draw(st.booleans()))

    layers = some(of.layers)
    heads = tuple(some(of.heads[layer]) for layer in layers)
    neurons = tuple(some(of.neurons[layer]) for layer in layers)
    return Structure(layers, heads, neurons, of) if any(heads) or any(neurons) else Structure.whole(of)


@given(data=st.data())
def test_what_is_kept_in_steps_is_what_is_kept_at_once(data):
    """Against names that are cut step by step."""
    names = [
        ([f"h{layer}.{i}" for i in range(SHAPE.heads[layer])], [f"n{layer}.{i}" for i in range(SHAPE.neurons[layer])])
        for layer in range(3)
    ]
    whole = names
    composed = Structure.whole(SHAPE)
    for _ in range(3):
        step = data.draw(structures(composed.sizes))
        names = [
            ([names[layer][0][i] for i in heads], [names[layer][1][i] for i in neurons])
            for layer, heads, neurons in zip(step.layers, step.heads, step.neurons, strict=True)
        ]
        composed = composed.then(step)
    assert names == [
        ([whole[layer][0][i] for i in heads], [whole[layer][1][i] for i in neurons])
        for layer, heads, neurons in zip(composed.layers, composed.heads, composed.neurons, strict=True)
    ]
    assert composed.of == SHAPE
    assert composed.sizes == Shape(len(names), tuple(len(h) for h, _ in names), tuple(len(n) for _, n in names))
    assert Structure.from_dict(json.loads(json.dumps(composed.to_dict()))) == composed


def test_layers_without_anything_are_not_kept():
    found = Structure((0, 1, 2), ((), (), (2,)), ((), (), ()), SHAPE)
    assert (found.layers, found.heads, found.neurons) == ((2,), ((2,),), ((),))
    assert not found.is_whole
    assert Structure.whole(SHAPE).is_whole
    assert Structure.whole(SHAPE).then(found) == found
    with pytest.raises(UserError, match="nothing would be left"):
        Structure((0, 1), ((), ()), ((), ()), SHAPE)


def test_written_as_runs():
    written = Structure((0, 2), ((0, 1, 3), ()), ((1, 2, 3, 5), (4,)), SHAPE).to_dict()
    assert written == {
        "of": {"heads": [4, 2, 4], "neurons": [6, 0, 5]},
        "layers": [
            {"layer": 0, "heads": "0-1,3", "neurons": "1-3,5"},
            {"layer": 2, "heads": "", "neurons": "4"},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 3), ((1,), (1,)), ((), ())), "there are 3 layers, counted from 0, and 3 is none"),
        (((-1,), ((1,),), ((),)), "-1 is none of them"),
        (((0,), ((4,),), ((),)), "there are 4 heads of layer 0, counted from 0, and 4 is none"),
        (((1,), ((),), ((0,),)), "there are 0 neurons of layer 1"),
        (((1, 0), ((1,), (1,)), ((), ())), "layers must be in rising order, each once, got 1, 0"),
        (((0,), ((1, 1),), ((),)), "heads of layer 0 must be in rising order"),
        (((0,), ((True,),), ((),)), "True is none of them"),
        (((0,), ((1.0,),), ((),)), "1.0 is none of them"),
        (((0,), ((1,), (1,)), ((),)), "1 kept layers need as many lists of heads, got 2"),
        (((0,), ((1,),), ()), "1 kept layers need as many lists of neurons, got 0"),
        (((), (), ()), "nothing would be left"),
    ],
)
def test_refuses_what_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        Structure(*arguments, SHAPE)


def test_refuses_another_model():
    with pytest.raises(UserError, match="of 3 layers with 4/2/4 heads and 6/0/5 neurons, but this one has 2 layers"):
        SOME.then(Structure.whole(SHAPE))
    for bad in ((0, (), ()), (1, (1, 2), (1,)), (1, (-1,), (1,)), (1, (True,), (1,)), (1, (1,), (LARGEST + 1,))):
        with pytest.raises(UserError):
            Shape(*bad)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("0123456789-, ", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["of", "layers", "heads"]), inner),
    max_leaves=6,
)


@given(data=st.data(), value=_JSON)
def test_any_damage_is_one_sentence(data, value):
    """A value anywhere in a record may be anything: there is a structure or a UserError, and nothing else."""
    record = copy.deepcopy(SOME.to_dict())
    places = [(record, "of"), (record, "layers"), (record["of"], "heads"), (record["of"], "neurons")]
    places += [(record["of"]["heads"], 1), (record["layers"], 0)]
    places += [(entry, key) for entry in record["layers"] for key in entry]
    where, key = data.draw(st.sampled_from(places))
    where[key] = value
    for damaged in (record, value):
        told = None
        try:
            found = Structure.from_dict(damaged)
        except UserError as error:
            told = str(error)
        if told is None:
            assert Structure.from_dict(found.to_dict()) == found
        else:
            assert "\n" not in told
            assert len(told) < 300
