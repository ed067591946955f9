"""Windows over long rows, against brute force."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_arch.data.windows import first_tokens, spans, windowed


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    size = draw(st.integers(1, 9))
    return draw(st.integers(1, 40)), size, draw(st.integers(0, size - 1))


@settings(max_examples=200, deadline=None)
@given(sizes())
def test_windows_cover_everything_and_share_what_they_should(given_sizes: tuple[int, int, int]) -> None:
    count, size, stride = given_sizes
    found = spans(count, size, stride)
    assert found[0][0] == 0
    assert found[-1][1] == count
    assert all(0 < end - start <= size for start, end in found)
    for (start, end), (next_start, next_end) in zip(found, found[1:], strict=False):
        assert end - next_start == stride
        assert end - start == size  # only the last is shorter
        assert next_end > end  # no window is there in vain
    assert len(found) == 1 or count > size


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (1, 1), (0, 2)])
@settings(max_examples=100, deadline=None)
@given(given_sizes=sizes(), places=st.lists(st.integers(0, 39), max_size=6))
def test_a_token_is_taken_from_where_the_text_was_cut_furthest_away(
    before: int, behind: int, given_sizes: tuple[int, int, int], places: list[int]
) -> None:
    count, size, stride = given_sizes
    places = [place % count for place in places]
    content = list(range(100, 100 + count))
    ids = [*range(before), *content, *range(50, 50 + behind)]
    found = windowed(ids, before, count, size + before + behind, stride, places)
    cut = spans(count, size, stride)
    expected = [[*range(before), *content[start:end], *range(50, 50 + behind)] for start, end in cut]
    assert found.input_ids == [token for part in expected for token in part]
    assert found.lengths == [len(part) for part in expected]
    begins = [sum(found.lengths[:i]) for i in range(len(cut))]
    assert len(found.places) == len(places)
    for place, at in zip(places, found.places, strict=True):
        assert found.input_ids[at] == content[place]
        window = bisect_right(begins, at) - 1
        margins = [min(place - start, end - 1 - place) for start, end in cut if start <= place < end]
        start, end = cut[window]
        assert min(place - start, end - 1 - place) == max(margins)


@st.composite
def words_and_tokens(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Words, and tokens that go on in the text, may overlap, and may have no character."""
    edges = sorted(draw(st.sets(st.integers(0, 24), min_size=2, max_size=12)))
    words = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if draw(st.booleans())]
    offsets, start, end = [], 0, 0
    for _ in range(draw(st.integers(1, 10))):
        start = draw(st.integers(max(start, end - 1), end + 2))
        end = max(end, start + draw(st.integers(0, 4)))
        offsets.append((start, end))
    return words, offsets


@settings(max_examples=300, deadline=None)
@given(words_and_tokens())
def test_first_tokens(drawn: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> None:
    words, offsets = drawn
    found = first_tokens(words, offsets)
    assert len(found) == len(words)
    assert found == sorted(found)
    for (start, end), token in zip(words, found, strict=True):
        overlapping = [i for i, (a, b) in enumerate(offsets) if b > start and a < end]
        if overlapping:
            assert token == overlapping[0]
        else:  # what is dropped gets the token behind it, or the last
            behind = [i for i, (_, b) in enumerate(offsets) if b > start]
            assert token == (behind[0] if behind else len(offsets) - 1)


def test_words_without_any_token() -> None:
    assert first_tokens([(0, 1), (1, 2)], []) == [0, 0]
