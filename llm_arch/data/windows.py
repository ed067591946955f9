"""Long rows as overlapping windows, and each word's place in the one that shows most of what surrounds it.

Legend: a row's *content* is its tokens without those that the tokenizer puts around every sequence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from llm_arch.data.words import Word
from llm_arch.types import UserError


class Windows(NamedTuple):
    """A row of several windows.

    Attributes:
        input_ids: the tokens of all windows, one window after another, each with its special tokens.
        lengths: tokens of each window.
        places: where among `input_ids` each word's token lies.
    """

    input_ids: list[int]
    lengths: list[int]
    places: list[int]


def spans(count: int, size: int, stride: int) -> list[tuple[int, int]]:
    """First token and end of each window over `count` tokens; neighbours share `stride` of them.

    Args:
        count: tokens to cover.
        size: tokens a window at most.
        stride: tokens that two neighbours share, below `size`.
    """
    return [(start, min(start + size, count)) for start in range(0, max(1, count - stride), size - stride)]


def windowed(
    ids: Sequence[int], first: int, count: int, max_length: int, stride: int, places: Sequence[int]
) -> Windows:
    """Cut a row into windows.

    A token that stands in two windows belongs to the one in which it is further from where the text was cut: up to the
    middle of the overlap that is the earlier window.

    Args:
        ids: all tokens of the row, special ones at both ends.
        first: special tokens in front.
        count: tokens of the content.
        max_length: tokens a window at most, special ones included.
        stride: tokens of the content that neighbours share.
        places: each word's token, counted within the content.
    """
    before, content, behind = list(ids[:first]), list(ids[first : first + count]), list(ids[first + count :])
    cut = spans(count, max_length - len(before) - len(behind), stride)
    borders = [(following[0] + window[1] + 1) // 2 for window, following in pairwise(cut)]
    parts = [[*before, *content[start:end], *behind] for start, end in cut]
    # What to add to a token's number in the content, by the window it belongs to.
    shifts = [
        begin + first - start
        for begin, (start, _) in zip(accumulate(map(len, parts[:-1]), initial=0), cut, strict=True)
    ]
    return Windows(
        [token for part in parts for token in part],
        [len(part) for part in parts],
        [place + shifts[bisect_right(borders, place)] for place in places],
    )


def first_tokens(words: Sequence[Word], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The first token of each word: the first that has characters of it.

    A word that the tokenizer dropped, such as a control character, gets the token behind it, or the last: every word
    has a place.

    Args:
        words: in order.
        offsets: first character and end of each token of the content.
    """
    found, token, last = [], 0, max(0, len(offsets) - 1)
    for start, _ in words:
        while token < last and offsets[token][1] <= start:
            token += 1
        found.append(token)
    return found


def content_of(special_tokens_mask: Sequence[int]) -> tuple[int, int]:
    """The first token of a row's content, and how many there are; (0, 0) for none."""
    count = len(special_tokens_mask) - sum(special_tokens_mask)
    return (special_tokens_mask.index(0) if count else 0), count


def row_of_words(
    ids: list[int], first: int, count: int, words: Sequence[Word], tokens: Sequence[int], max_length: int, stride: int
) -> dict[str, Any]:
    """The columns of `make_batch` for one row, in windows if it is too long.

    Args:
        ids: all tokens of the row, special ones at both ends.
        first: special tokens in front.
        count: tokens of the content.
        words: where its words lie in the text; at least one.
        tokens: each word's token, counted within the content.
        max_length: tokens a window at most, special ones included.
        stride: tokens of the content that neighbouring windows share.

    Raises:
        UserError: when a window could not move on.
    """
    lengths, places = None, [first + token for token in tokens]
    if len(ids) > max_length:
        size = max_length - (len(ids) - count)
        if stride >= size:
            raise UserError(
                f"data.stride is {stride}, but of data.max_length {max_length} only {size} tokens are left beside "
                f"special ones; set a smaller stride, or a larger max_length"
            )
        ids, lengths, places = windowed(ids, first, count, max_length, stride, tokens)
    starts, ends = zip(*words, strict=True)
    columns = {"input_ids": ids, "token_type_ids": None, "windows": lengths, "word_token": places}
    return columns | {"word_start": list(starts), "word_end": list(ends)}
