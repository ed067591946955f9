"""Rows of a wanted length to predict: cut or lengthened from a file's, or made of a tokenizer's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from llm_arch.data.module import DataModule
from llm_arch.types import UserError

Row = Mapping[str, Any]

_NEAR = 0.9  # of the wanted length is good enough
_WORDS = 500
_words_of: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()  # by tokenizer


def tokens_of(data: DataModule, row: Row) -> int:
    """How many tokens a model reads for a row, windows and choices together; 0 where it can't use it."""
    if data.fault(row, False) is not None:
        return 0
    ids = data.encode([row])[0]["input_ids"][0]
    return len(ids) if ids is not None else 0


def rows_of(data: DataModule, name: str) -> list[Row]:
    """All rows of a file or set that can be read."""
    return [row.values for row in data.source(name).rows() if not row.fault]


def spread(values: Sequence[Row], count: int) -> list[Row]:
    """At most so many of them, spread over all."""
    if len(values) <= count:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, count).astype(int)]


def made_row(data: DataModule) -> Row:
    """A short row of the words of the tokenizer, of which `of_length` makes longer ones.

    Raises:
        UserError: rows of this kind hold more than texts.
    """
    words = vocabulary_words(data.tokenizer)
    row = {name: " ".join(words[:3]) for name, needed in data.columns.items() if needed}
    choices = {name: words[:2] for name in list(row)[1:]}
    for made in (row, row | choices):
        if tokens_of(data, made):
            return made
    raise UserError(f"rows of {type(data).__name__} hold more than texts ({', '.join(row)}); give some as data")


def of_length(data: DataModule, samples: Sequence[Row], length: int, count: int) -> list[Row]:
    """Rows of about so many tokens: samples that are cut at the end, or go on with the words of others.

    Args:
        data: how the model reads rows.
        samples: rows to make them of.
        length: tokens of a row, special tokens included.
        count: rows wanted.

    Returns:
        The rows, samples taking turns; none where no row can be made this long, as of a model that reads no more.
    """
    words = vocabulary_words(data.tokenizer)
    pool = [w for row in samples for w in _words(row.get(_column(row) or ""))] if len(samples) > 1 else words
    found: list[Row] = []
    for place, row in enumerate(samples):
        offset = 7 * place % max(len(pool), 1)
        more = list(islice(cycle(pool[offset:] + pool[:offset] or words), length))
        made = _fitted(data, row, more, words[0], length)
        if made is not None:
            found.append(made)
        if len(found) == count:
            break
    return list(islice(cycle(found), count)) if found else []


def vocabulary_words(tokenizer: Any) -> list[str]:
    """Words that are one token each; `a` where there are none."""
    if tokenizer not in _words_of:
        _words_of[tokenizer] = _one_token_words(tokenizer)
    return _words_of[tokenizer]


def _one_token_words(tokenizer: Any) -> list[str]:
    special = set(tokenizer.all_special_tokens)
    words = (token.lstrip("Ġ▁") for token in tokenizer.get_vocab() if token not in special)
    plain = sorted({word for word in words if re.fullmatch("[a-z]{3,10}", word)})
    step = max(1, len(plain) // _WORDS)
    return [word for word in plain[::step] if len(tokenizer.tokenize(f" {word}")) == 1] or ["a"]


def _fitted(data: DataModule, row: Row, more: list[str], filler: str, length: int) -> Row | None:
    """The row cut or lengthened, or None where it does not get near."""
    column = _column(row)
    if column is None:
        return None
    given, whole = row[column], len(_words(row[column]))

    def with_words(count: int) -> Row:
        if isinstance(given, list):
            return {**row, column: [*given, *more][:count]}
        if count >= whole:  # places of characters stay as they are
            return {**row, column: " ".join([given, *more[: count - whole]])}
        return {**row, column: given[: list(re.finditer(r"\S+", given))[count - 1].end()]}

    low, high = 1, whole + len(more)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens_of(data, with_words(middle)) <= length else (low, middle - 1)
    made = with_words(low)
    tokens = tokens_of(data, made)
    while tokens < length:  # the next word was too long
        value = made[column]
        longer = {**made, column: [*value, filler] if isinstance(value, list) else f"{value} {filler}"}
        found = tokens_of(data, longer)
        if not tokens < found <= length:
            break
        made, tokens = longer, found
    return made if _NEAR * length <= tokens <= length else None


def _column(row: Row) -> str | None:
    """The column that is cut or lengthened: that of the longest text, or else of a list of words."""
    texts = {name: len(value) for name, value in row.items() if isinstance(value, str) and value.strip()}
    lists = {n: len(v) for n, v in row.items() if isinstance(v, list) and v and all(isinstance(w, str) for w in v)}
    found = texts or lists
    return max(found, key=lambda name: found[name]) if found else None


def _words(value: Any) -> list[str]:
    return value if isinstance(value, list) else str(value or "").split()
