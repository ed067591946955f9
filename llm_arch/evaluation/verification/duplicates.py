"""Rows of one split that another has too, or nearly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_arch.augmentation.similarity import TextIndex, normalized
from llm_arch.data.splits import Split
from llm_arch.evaluation.verification.base import Check, Outcome, skip
from llm_arch.evaluation.verification.subject import Subject
from llm_arch.seeding import mix

TEXTS = ("text", "text_pair")  # columns that hold what rows are compared by
NEAR = 0.8  # of the runs of two words that two texts share (Jaccard)
_TRAINING, _OTHER = 20_000, 2_000  # rows that near-duplicates are sought among, and of how many rows of other splits
_CHARACTERS = 1_000_000  # that the rows of one split are compared by at most
_CHUNK, _FEW = 10_000, 50
_SHOWN = 60


class Row(NamedTuple):
    """A row: what it is called, and its texts."""

    place: str
    texts: tuple[str, ...]


class Duplicates(Check):
    """No row stands in two splits; rows that nearly do are counted."""

    promise = "no duplicates between splits"

    def run(self, subject: Subject) -> Outcome:
        """Compare all rows by their exact texts, and a sample of them by the words that they share."""
        splits = [split for name, split in subject.data.splits.items() if name != "predict"]
        if len(splits) < 2:
            return skip(f"there is a single split, {splits[0].name}")
        if not (_is_corpus(splits[0]) or "text" in splits[0].rows.column_names):
            return skip(f"{type(subject.data).__name__} keeps no text beside the tokens")
        count, pair = _exact(subject.data, splits)
        if count:
            return Outcome("fail", float(count), "= 0", f"rows with the text of a row of an earlier split; {pair}")
        return _near(subject, splits)


def _is_corpus(split: Split) -> bool:
    return hasattr(split.rows, "store")


def _exact(data: Any, splits: Sequence[Split]) -> tuple[int, str]:
    """How many rows have the texts of a row of another split, and the first of them with its twin."""
    count, first = 0, ""
    for earlier, later in combinations(splits, 2):
        known = {key: place for keys, places in _keys(earlier) for key, place in zip(keys, places, strict=True)}
        for keys, places in _keys(later):
            twins = [(place, known[key]) for key, place in zip(keys, places, strict=True) if key in known]
            count += len(twins)
            if twins and not first:
                (own,), (other,) = _rows(data, later, twins[0][:1]), _rows(data, earlier, twins[0][1:])
                first = f"{later.name} {_shown(own)} = {earlier.name} {other.place}"
    return count, first


def _places(split: Split) -> NDArray[np.int64]:
    """Where the rows of a split lie among the stored ones; of a corpus its documents."""
    if _is_corpus(split):
        return np.unique(split.rows.pieces.document)
    return np.arange(len(split.rows)) if split.chosen is None else split.chosen


def _keys(split: Split) -> Iterator[tuple[list[int], list[int]]]:
    """A number for the texts of each row, and the place of the row, some rows at a time."""
    places = _places(split)
    for start in range(0, len(places), _CHUNK):
        some = places[start : start + _CHUNK]
        if _is_corpus(split):
            yield np.asarray(split.rows.store.keys)[some].tolist(), some.tolist()
        else:
            yield [hash(texts) for texts in zip(*_columns(split, some, TEXTS), strict=True)], some.tolist()


def _columns(split: Split, places: Sequence[int] | NDArray[np.int64], names: Sequence[str]) -> list[list[Any]]:
    """Columns of stored rows, those that there are."""
    table = split.rows.data
    return [table.column(name).take(places).to_pylist() for name in names if name in split.rows.column_names]


def _rows(data: Any, split: Split, places: Sequence[int]) -> list[Row]:
    """Rows by their places among the stored ones; of a corpus documents."""
    if _is_corpus(split):
        read = split.rows.store.read
        texts = (str(data.tokenizer.decode(read(place).tolist(), skip_special_tokens=True)) for place in places)
        return [Row(f"document {place + 1}", (text,)) for place, text in zip(places, texts, strict=True)]
    lines, *columns = _columns(split, places, ("line", *TEXTS))
    rows = (tuple(filter(None, row)) for row in zip(*columns, strict=True))
    return [Row(f"line {line}", row) for line, row in zip(lines, rows, strict=True)]


def _sample(subject: Subject, split: Split, count: int) -> list[Row]:
    """Some rows of a split by chance, fewer where they are long."""
    places = _places(split)
    places = np.random.default_rng(mix(subject.seed, len(places))).permutation(places)[:count]
    found: list[Row] = []
    left = _CHARACTERS
    for start in range(0, len(places), _FEW):
        for row in _rows(subject.data, split, places[start : start + _FEW].tolist()):
            left -= sum(map(len, row.texts))
            if left < 0 and found:
                return found
            found.append(row)
    return found


def _near(subject: Subject, splits: Sequence[Split]) -> Outcome:
    """Near-duplicates of sampled rows among sampled rows of the splits before theirs."""
    total = count = 0
    closest, pair = 0.0, ""
    sizes = []
    for number, later in enumerate(splits[1:], start=1):
        rows = _sample(subject, later, _OTHER)
        earlier = {
            normalized(row.texts): (split.name, row)
            for split in splits[:number]
            for row in _sample(subject, split, _TRAINING)
        }
        index = TextIndex([row.texts for _, row in earlier.values()], NEAR)
        what = "documents" if _is_corpus(later) else "rows"
        sizes.append(f"{len(rows):,} of {len(_places(later)):,} {later.name} {what} against {len(earlier):,}")
        for row in rows:
            nearest = index.nearest(row.texts)
            if nearest is None:
                continue
            count += 1
            if nearest[1] > closest:
                name, twin = earlier[nearest[0]]
                closest = nearest[1]
                pair = f"; nearest ({closest:.2f}): {later.name} {_shown(row)} and {name} {_shown(twin)}"
        total += len(rows)
    share = count / max(1, total)
    status = "fail" if share > subject.max_near_duplicates else "warn" if count else "pass"
    reason = f"no exact ones; {count} near ones ({NEAR:g} of two-word runs) among {', '.join(sizes)}{pair}"
    return Outcome(status, share, f"≤ {subject.max_near_duplicates:g}", reason)  # type: ignore[arg-type]


def _shown(row: Row) -> str:
    text = " ".join(" | ".join(row.texts).split())
    return f"{row.place} {(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…')!r}"
