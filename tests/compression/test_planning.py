"""What is kept: the most important units of the chosen sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_arch.compression.importance import Scores
from llm_arch.compression.planning import Shares, most_important
from llm_arch.compression.structure import Shape, Structure
from llm_arch.types import UserError

SHAPE = Shape(3, (4, 4, 4), (20, 20, 20))


def scores_of(shape, layers=None):
    generator = torch.Generator().manual_seed(0)
    heads, neurons = ([torch.rand(n, generator=generator) for n in sizes] for sizes in (shape.heads, shape.neurons))
    return Scores(heads, neurons, torch.rand(shape.layers) if layers is None else torch.tensor(layers))


@given(st.data())
def test_the_most_important_stay(data):
    values = st.integers(0, 3).map(float)  # with ties, where the first stay
    heads, neurons = (
        [data.draw(st.lists(values, min_size=n, max_size=n)) for n in sizes] for sizes in ((3, 0, 4), (6, 5, 0))
    )
    shape = Shape(3, (3, 0, 4), (6, 5, 0))
    sizes = [
        data.draw(st.none() | st.tuples(st.integers(0, h), st.integers(0, n)))
        for h, n in zip(shape.heads, shape.neurons, strict=True)
    ]
    alive = [size for size in sizes if size is not None and any(size)]
    scores = Scores([torch.tensor(h) for h in heads], [torch.tensor(n) for n in neurons], torch.zeros(3))
    if not alive:
        with pytest.raises(UserError, match="nothing would be left"):
            most_important(scores, sizes, shape)
        return
    found = most_important(scores, sizes, shape)
    assert found.of == shape
    assert list(found.layers) == [i for i, size in enumerate(sizes) if size is not None and any(size)]
    for place, layer in enumerate(found.layers):
        for kept, own, count in zip(
            (found.heads[place], found.neurons[place]), (heads[layer], neurons[layer]), sizes[layer], strict=True
        ):
            ranked = sorted(range(len(own)), key=lambda unit: (-own[unit], unit))
            assert kept == tuple(sorted(ranked[:count]))


def test_shares_are_rounded():
    whole, scores = Structure.whole(SHAPE), scores_of(SHAPE)
    assert Shares(heads=0.6, neurons=0.5).sizes(scores, whole, 1) == [(2, 10)] * 3
    assert Shares(heads=0.7, neurons=0.5).sizes(scores, whole, 8) == [(3, 8)] * 3
    assert Shares(heads=0.0, neurons=0.65).sizes(scores, whole, 8) == [(0, 16)] * 3
    assert Shares(neurons=0.01).sizes(scores, whole, 8) == [(4, 0)] * 3
    # Never more than there are, and all where all were asked for, though 20 is no multiple of 8.
    assert Shares(heads=0.5, neurons=0.99).sizes(scores, whole, 8) == [(2, 16)] * 3
    assert Shares(heads=0.5, neurons=0.99).sizes(scores, whole, 7) == [(2, 20)] * 3
    assert Shares(heads=0.5).sizes(scores, whole, 8) == [(2, 20)] * 3
    assert Shares().sizes(scores, whole, 8) == [(4, 20)] * 3


def test_layers_by_number_and_by_name():
    whole, scores = Structure.whole(SHAPE), scores_of(SHAPE, [2.0, 1.0, 3.0])
    assert Shares(layers=2).sizes(scores, whole, 1) == [(4, 20), None, (4, 20)]
    assert Shares(layers=[1], heads=0.5).sizes(scores, whole, 1) == [None, (2, 20), None]
    assert Shares(layers=3).sizes(scores, whole, 1) == [(4, 20)] * 3
    # They go with the last time.
    assert Shares(layers=[1]).sizes(scores, whole, 1, progress=0.9) == [(4, 20)] * 3
    # A name is that of the model before pruning.
    kept = Structure((0, 2), ((0, 1), (3,)), ((0, 1, 2), (4,)), SHAPE)
    later = scores_of(kept.sizes, [1.0, 2.0])
    assert Shares(layers=[2]).sizes(later, kept, 1) == [None, (1, 1)]
    assert Shares(layers=1).sizes(later, kept, 1) == [None, (1, 1)]
    assert Shares(layers=[0, 1, 2], heads=0.25).sizes(later, kept, 1) == [(1, 3), (1, 1)]


@given(st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 8), st.integers(2, 6))
def test_never_more_as_time_goes_on(heads, neurons, multiple, times):
    shares, kept = Shares(heads=heads, neurons=neurons), Structure.whole(SHAPE)
    before = [(4, 20)] * 3
    for time in range(1, times + 1):
        progress = 1 - (1 - time / times) ** 3
        sizes = shares.sizes(scores_of(kept.sizes), kept, multiple, progress)
        assert all(h <= b[0] and n <= b[1] for (h, n), b in zip(sizes, before, strict=True))
        if not any(any(size) for size in sizes):
            return
        kept = kept.then(most_important(scores_of(kept.sizes), sizes, kept.sizes))
        before = list(zip(kept.sizes.heads, kept.sizes.neurons, strict=True))
    # All in steps is what all at once would be.
    assert sizes == shares.sizes(scores_of(SHAPE), Structure.whole(SHAPE), multiple)[: len(sizes)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 1.5}, r"heads is a share to keep, in \[0, 1\], got 1.5"),
        ({"neurons": -0.1}, r"neurons is a share to keep, in \[0, 1\], got -0.1"),
        ({"neurons": float("nan")}, "got nan"),
        ({"heads": 0, "neurons": 0}, "leaves nothing of the model"),
    ],
)
def test_bad_shares(arguments, message):
    with pytest.raises(UserError, match=message):
        Shares(**arguments)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "layers must be between 1 and 3, got 0"),
        (4, "layers must be between 1 and 3, got 4"),
        ([1, 3], "layers 0 to 2, and 3 is none of them"),
        ([-1], "-1 is none of them"),
        ([], "names none"),
    ],
)
@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_bad_layers(layers, message, progress):
    """The first time already, though they go with the last."""
    with pytest.raises(UserError, match=message):
        Shares(layers=layers).sizes(scores_of(SHAPE), Structure.whole(SHAPE), 1, progress)
