"""Where the words of a text lie, in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

Word = tuple[int, int]  # its first character, and the one after its last

# Scripts that put no spaces between words: Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar.
_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U000323af\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"
    "\u0e01-\u0e4e\u0e80-\u0ece\u0edc-\u0edf\u1780-\u17d3\u1000-\u103f\u1050-\u108f\u109a-\u109d"
    "\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"
)
# The non-joiner and the joiner stand within words of Persian and of Indian scripts, and within emoji.
_JOINERS = "\u200c\u200d"


def _marks() -> str:
    """Accents, vowel signs and the like, which belong to the character before them, as ranges of a character class."""
    planes = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    points = [p for plane in planes for p in plane if unicodedata.category(chr(p)).startswith("M")]
    starts = [p for p, before in zip(points, [0, *points], strict=False) if p != before + 1]
    ends = [p for p, after in zip(points, [*points[1:], 0], strict=True) if p + 1 != after]
    return _JOINERS + "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


@cache
def _pattern() -> re.Pattern[str]:
    marks = _marks()
    return re.compile(f"(?:[^\\W_{_UNSPACED}]++[{marks}]*+)++|\\S[{marks}]*+")


def split(text: str) -> list[Word]:
    """The words of a text in order; every character but white space is in exactly one.

    A run of letters and digits is a word, with accents and other combining marks. Anything else is a word by itself:
    a punctuation mark, a symbol, and each character of a script without spaces (Han, Kana, Thai, Lao, Khmer, Myanmar),
    again with its marks.
    """
    return [match.span() for match in _pattern().finditer(text)]


def cut(words: Iterable[Word], borders: Iterable[int]) -> list[Word]:
    """The words, those with a border inside them cut there.

    Args:
        words: in order.
        borders: characters before which a word must not go on.
    """
    left = sorted(set(borders), reverse=True)
    found: list[Word] = []
    for start, end in words:
        while left and left[-1] < end:
            border = left.pop()
            if border > start:
                found.append((start, border))
                start = border
        found.append((start, end))
    return found


def joined(tokens: Sequence[str]) -> list[Word]:
    """Where each token lies in the tokens joined by single spaces."""
    found, start = [], 0
    for token in tokens:
        found.append((start, start + len(token)))
        start += len(token) + 1
    return found
