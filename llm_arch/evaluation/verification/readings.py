"""The labels of a batch, back in the terms of its rows: a function for each kind, by a name in `Batch.labels`.

Legend: R rows, W words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llm_arch.tags import entities, scheme_of
from llm_arch.types import Batch


@dataclass(frozen=True)
class Given:
    """What there is to compare.

    Attributes:
        data: the data module.
        batch: R rows, with labels.
        rows: their values, as the source has them.
    """

    data: Any
    batch: Batch
    rows: Sequence[Mapping[str, Any]]

    def kept(self, name: str) -> list[Any]:
        """A column that the format makes of the rows' own values."""
        return [self.data.kept(values, True)[name] for values in self.rows]


class Reading(NamedTuple):
    """What was read back.

    Attributes:
        rows: of each row whether it is right, and what was given and what was read, for a message.
        what: what was counted.
        more: what else was measured, or "".
    """

    rows: list[tuple[bool, str]]
    what: str
    more: str = ""


def _rows(given: Sequence[Any], read: Sequence[Any], what: str, more: str = "") -> Reading:
    pairs = zip(given, read, strict=True)
    return Reading([(a == b, f"{_short(a)} was given, {_short(b)} read back") for a, b in pairs], what, more)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


def classes(given: Given) -> Reading | None:
    """Class names, one or a set of them."""
    names, truth = given.data.label_space.names, given.batch.labels["label"]
    stated = [set(given.data.labels_of(given.data.kept(values, True))) & {*names} for values in given.rows]
    if not any(stated) and not given.data.label_space.multi:
        return None
    read = [{names[int(i)] for i in (row.nonzero()[:, 0] if row.ndim else row[None])} for row in truth]
    return _rows(stated, read, "rows have the labels that were given")


def tags(given: Given) -> Reading | None:
    """Tags of tokens, or spans in characters; and whether each word's token is the one that its text begins with."""
    data, batch = given.data, given.batch
    words = batch.words
    if words is None:
        return None
    names, row_W = data.label_space.names, words.row.tolist()
    told: list[list[str]] = [[] for _ in given.rows]
    places: list[list[tuple[int, int, int]]] = [[] for _ in given.rows]
    numbers = (words.start.tolist(), words.end.tolist(), batch.input_ids[words.token].tolist())
    for row, tag, *place in zip(row_W, batch.labels["tag"].tolist(), *numbers, strict=True):
        told[row].append(names[tag])
        places[row].append(tuple(place))
    stated: list[Any] = []
    read: list[Any] = []
    for values, own, words_of in zip(given.rows, told, places, strict=True):
        text = data.texts(values)[0]
        listed = values.get(getattr(data, "tags_column", "tags"))
        if listed is not None:
            stated.append(list(listed))
            read.append(own)
        else:
            spans = values.get(getattr(data, "spans_column", "spans")) or []
            stated.append(sorted(_span(text, one["start"], one["end"], str(one["label"]).strip()) for one in spans))
            found = entities(own, scheme_of(names))
            read.append(sorted(_span(text, words_of[a][0], words_of[b - 1][1], label) for a, b, label in found))
    misplaced = sum(map(_misplaced, [data] * len(places), map(lambda v: data.texts(v)[0], given.rows), places))
    reading = _rows(stated, read, "rows have the tags or spans that were given")
    if misplaced:
        rows = [(False, f"{misplaced} words lie at tokens that are not theirs"), *reading.rows[1:]]
        return Reading(rows, reading.what)
    return reading


def _span(text: str, start: int, end: int, label: str) -> tuple[int, int, str]:
    """A span without the white space at its ends, which is of no word."""
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()), label


def _misplaced(data: Any, text: str, words: Sequence[tuple[int, int, int]]) -> int:
    """How many words are not at a token that their first character is of."""
    encoding = data.tokenizer(text).encodings[0]
    tokens = [encoding.char_to_token(start) for start, _, _ in words]
    pairs = zip(tokens, words, strict=True)
    return sum(token is not None and encoding.ids[token] != number for token, (_, _, number) in pairs)


def answers(given: Given) -> Reading | None:
    """Answers in a context: the words from first to last must be those that the answer is in."""
    batch, words = given.batch, given.batch.words
    if words is None:
        return None
    first_R = torch.searchsorted(words.row, torch.arange(batch.rows)).tolist()
    read: list[list[str]] = [[] for _ in given.rows]
    triples = (batch.labels[name].tolist() for name in ("answer_row", "answer_start", "answer_end"))
    for row, start, end in zip(*triples, strict=True):
        context = given.data.texts(given.rows[row])[1]
        place = slice(int(words.start[first_R[row] + start]), int(words.end[first_R[row] + end]))
        read[row].append(context[place])
    rows, literal, total = [], 0, 0
    for stated, found in zip(given.kept("answers"), read, strict=True):
        held = [any(one in other for other in found) for one in stated]
        said = f"{_short(stated)} was given, {_short(found)} read back"
        rows.append((all(held) and (bool(stated) or not found), said))
        literal += sum(one in found for one in stated)
        total += len(stated)
    share = f"; {literal} of {total} answers to the character, the others within their tokens" if total else ""
    return Reading(rows, "rows have the answers that were given", share)


def choices(given: Given) -> Reading | None:
    """The choice that is right, by the text of its sequence."""
    data, batch = given.data, given.batch
    firsts = torch.searchsorted(batch.row_of_sequence, torch.arange(batch.rows)).tolist()
    rows = []
    for row, (values, place) in enumerate(zip(given.rows, batch.labels["choice"].tolist(), strict=True)):
        sequence = firsts[row] + place
        start, length = int(batch.starts[sequence]), int(batch.lengths[sequence])
        text = json.loads(data.texts(values)[1])[data.kept(values, True)["answer"]][1]
        read = _through(data, batch.input_ids[start : start + length].tolist())
        stated = _through(data, data.tokenizer(text, add_special_tokens=False)["input_ids"])
        cut = length >= data.max_length
        rows.append((read.endswith(stated) or cut, f"{_short(stated)} was given, {_short(read[-80:])} read back"))
    return Reading(rows, "rows have the choice that was given")


def _through(data: Any, ids: Sequence[int]) -> str:
    """Token ids as text, of which letters and digits count alone."""
    text = data.tokenizer.decode(list(ids), skip_special_tokens=True)
    return "".join(c for c in text.casefold() if c.isalnum()) or text.strip()


def numbers(given: Given) -> Reading | None:
    """Numbers, in fp32."""
    stated = torch.tensor([float(one) for one in given.kept("target")], dtype=torch.float32).tolist()
    return _rows(stated, given.batch.labels["target"].tolist(), "rows have the number that was given")


def written(given: Given) -> Reading | None:
    """Texts to write: the tokens to learn, detokenized, but for what the tokenizer makes of any text."""
    data, batch = given.data, given.batch
    cells = batch.labels.get("positions", torch.arange(len(batch.input_ids)))
    last = batch.position_ids[cells] >= batch.labels["prompts"][batch.segments[cells]] - 1
    targets: list[list[int]] = [[] for _ in given.rows]
    for row, token in zip(batch.segments[cells][last].tolist(), batch.labels["targets"][last].tolist(), strict=True):
        targets[row].append(token)
    read = data.detokenize(targets)
    references = list(batch.texts["reference"])
    own = data.tokenizer(references, add_special_tokens=False)["input_ids"]
    room = data.max_completion - len(data.end)
    stated = data.detokenize([ids[:room] for ids in own])
    literal = sum(a == (b.strip() if data.strips else b) for a, b in zip(read, references, strict=True))
    return _rows(stated, read, "texts to write come back", f", {literal} of them to the character")


READINGS: dict[str, Callable[[Given], Reading | None]] = {
    "tag": tags,
    "answer_row": answers,
    "choice": choices,
    "target": numbers,
    "prompts": written,
    "label": classes,
}
