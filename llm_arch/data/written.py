"""The base of data with texts to write: what is given and what is to be learnt, for decoders and encoder–decoders.

Legend: T tokens, R rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from llm_arch.corpus import cache  # as a module: it imports from llm_arch.data
from llm_arch.corpus.template import Template
from llm_arch.data.collate import Numbers, flat_batch
from llm_arch.data.module import DataModule
from llm_arch.data.origins import Origins, places_of, with_nowhere
from llm_arch.types import Backbone, Batch, Detokenizer, LabelSpace, Prediction, UserError

HOLE = "\0"  # in what metrics are told of a prompt: where the text that was written goes


class Said(NamedTuple):
    """A part of a row: its text, and whether it is to be learnt or given."""

    text: str
    learnt: bool


class WrittenData(DataModule):
    """Rows that are a text given and a text to write, or several of both in turn.

    A decoder reads them as one sequence: the tokenizer's beginning-of-text token, where it has one; what is given; what
    parts the two; what is learnt, with an end-of-text token. The loss is of what is learnt alone. Of an encoder–decoder
    the encoder reads all up to the last text to write, and the decoder writes that.

    Args:
        train: see `DataModule`, as for all arguments up to `test`.
        validation: see `DataModule`.
        test: see `DataModule`.
        max_length: longest row in tokens, both texts and special tokens together.
        max_completion: longest text to write in tokens, its end included; None for half of `max_length`.
        tokenizer: as for all data; `trained:KIND:SIZE`, such as `trained:unigram:8192`, trains one on the texts of the
            training rows and keeps it in the cache.
        encoder_decoder: whether batches are made for an encoder–decoder; None for what the model is.
        **options: the other options of `DataModule`.
    """

    keeps_start = True  # of what is too long to be given: its beginning, or else its end
    strips = True  # whether white space around what was written means nothing

    maskable = False

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        max_length: int = 256,
        max_completion: int | None = None,
        tokenizer: str | None = None,
        encoder_decoder: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, tokenizer=tokenizer, max_length=max_length, **options)
        self.max_completion = max(2, max_length // 2) if max_completion is None else max_completion
        if not 2 <= self.max_completion < max_length:
            raise UserError(
                f"data.max_completion must be at least 2 and below data.max_length {max_length}, "
                f"got {self.max_completion}"
            )
        self.encoder_decoder = encoder_decoder

    # What a subclass says

    @abstractmethod
    def said(self, values: Mapping[str, Any], labelled: bool) -> list[Said]:
        """The texts of a row in order; the last is to be learnt where it is labelled, else the answer follows it."""

    def spoken(self, values: Mapping[str, Any]) -> list[str]:
        """The texts of a row, for a tokenizer that is to be trained on them."""
        return [part.text for part in self.said(values, True)]

    @property
    def separator(self) -> list[int]:
        """Tokens that a decoder sees between what is given and what is to be written."""
        sep = self.tokenizer.sep_token_id
        if sep is not None:
            return [sep]
        return list(self.tokenizer("\n", add_special_tokens=False)["input_ids"])

    @property
    def beginning(self) -> list[int]:
        """Tokens that a decoder sees before everything."""
        tokenizer = self.tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        return [] if first is None else [first]

    @property
    def end(self) -> list[int]:
        """Tokens that end a text that was written."""
        found = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        last = next((token for token in found if token is not None), None)
        if last is None:
            raise UserError(
                f"the tokenizer ({self.tokenizer_name}) has no token that ends a text, so nobody could learn where to "
                "stop; take one that has (eos_token or sep_token)"
            )
        return [last]

    # The model

    def suit(self, backbone: Backbone) -> None:
        """Make batches as the backbone reads them."""
        if self.encoder_decoder is not None and self.encoder_decoder != backbone.encoder_decoder:
            kind = "is an" if backbone.encoder_decoder else "is no"
            raise UserError(
                f"data.encoder_decoder is {str(self.encoder_decoder).lower()}, but the backbone {kind} "
                "encoder–decoder; leave it out"
            )
        self.encoder_decoder = backbone.encoder_decoder

    @property
    def detokenizer(self) -> Detokenizer:
        """How tokens become texts."""
        pad = self.tokenizer.pad_token_id
        end = self.end
        return Detokenizer(self.detokenize, tuple(end), end[0] if pad is None else pad, self.language)

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of token ids, without special tokens."""
        texts = self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
        return [text.strip() if self.strips else text for text in texts]

    def complete(self, prediction: Prediction, texts: tuple[str, str | None]) -> Prediction:
        """What was written, as text."""
        if not hasattr(prediction, "tokens"):
            return prediction
        return replace(prediction, generated=self.detokenize([prediction.tokens])[0])  # type: ignore[call-arg]

    # Tokens

    def tokenizer_place(self) -> str:
        """Where the tokenizer lies: as given, or in the cache, trained on the texts of the training rows."""
        name = super().tokenizer_place()
        if not cache.is_to_train(name):
            return name
        source = self.sources.get("train")
        if source is None:
            raise UserError(f"data.tokenizer is {name!r}, but there is no data.train to train it on")
        made_of = [self.class_path, self.source(source).fingerprint(), self.record()]
        return str(cache.trained_on(name, made_of, self._training_texts(source), self.cache))

    def _training_texts(self, source: str) -> Callable[[], Iterable[str]]:
        def texts() -> Iterable[str]:
            for row in self.source(source).rows():
                try:
                    if row.fault is None and self.fault(row.values, True) is None:
                        yield from self.spoken(row.values)
                except KeyError:  # without a column, of which reading the rows will complain
                    continue

        return texts

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """What was given and what is to be written as text, and how many tokens each part has, given and learnt."""
        return {"text": pa.string(), "text_pair": pa.string(), "parts": pa.list_(pa.int32())}

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The texts; `encode` gives the rest."""
        *given, last = self.said(values, labelled)
        texts = "".join(part.text for part in given)
        return {"text": texts if last.learnt else texts + last.text, "text_pair": last.text if last.learnt else None}

    def encode(
        self, rows: Sequence[Mapping[str, Any]], labelled: bool = False
    ) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Tokenize the parts of each row by themselves, without the special tokens around them."""
        parts = [self.said(values, labelled) for values in rows]
        flat = list(chain.from_iterable(parts))
        encoded = iter(
            self.tokenizer([p.text for p in flat], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        )
        found = [self._cut([(next(encoded), p.learnt) for p in row]) for row in parts]
        columns: dict[str, list[Any]] = {
            "input_ids": [ids for ids, _, _ in found],
            "token_type_ids": [None] * len(found),
            "parts": [sizes for _, sizes, _ in found],
        }
        words = sum(len(p.text.split()) for p in flat)
        return columns, {"truncated": sum(cut for _, _, cut in found), "words": words}

    def origins(self, values: Mapping[str, Any]) -> Origins:
        """As what is given is read; places are cut and put together as tokens are."""
        given = self.said(values, False)
        encodings = self.tokenizer(
            [part.text for part in given], add_special_tokens=False, return_attention_mask=False
        ).encodings
        names = ["prompt"] if len(given) == 1 else [f"part {number}" for number in range(1, len(given) + 1)]
        parts: list[Any] = [
            ([(i, start, end) for _, start, end in places_of(encoding)], part.learnt)
            for i, (part, encoding) in enumerate(zip(given, encodings, strict=True))
        ]
        places, sizes, _ = self._cut(parts)
        texts = dict(zip(names, (part.text for part in given), strict=True))
        if self.encoder_decoder:
            before, behind = self._template.special
            return Origins(texts, with_nowhere([*before, *places, *behind]))
        return Origins(texts, with_nowhere(self._sequence(_Row(places, sizes))[0]))

    def _cut(self, parts: list[tuple[list[int], bool]]) -> tuple[list[int], list[int], bool]:
        """Tokens of a row that fit, how many each part has (given and learnt in turn), and whether any was lost."""
        end = self.end
        last: list[int] = []
        cut = False
        if parts[-1][1]:
            *parts, (last, _) = parts
            cut = len(last) + len(end) > self.max_completion
            last = [*last[: self.max_completion - len(end)], *end]
        before = [(token, learnt) for ids, learnt in parts for token in ([*ids, *end] if learnt else ids)]
        cut = cut or len(before) > self._room
        before = before[: self._room] if self.keeps_start else before[-self._room :]
        sizes, turn = [0], False
        for learnt in chain((learnt for _, learnt in before), (True for _ in last)):
            if learnt != turn:
                sizes.append(0)
                turn = learnt
            sizes[-1] += 1
        return [*(token for token, _ in before), *last] if before else [], sizes, cut

    @cached_property
    def _room(self) -> int:
        """How many tokens may be given."""
        room = self.max_length - len(self.beginning) - len(self.separator) - self.max_completion
        if room < 1:
            raise UserError(
                f"data.max_length {self.max_length} leaves no room for what is given beside data.max_completion "
                f"{self.max_completion}; raise the one or lower the other"
            )
        return room

    # Batches

    def collate(self, columns: Mapping[str, list[Any]], labelled: bool = True) -> Batch:
        """Columns of rows → a batch of whole rows, or of beginnings that are to be continued."""
        index = np.asarray(columns["index"])
        rows = [_Row(ids, sizes) for ids, sizes in zip(columns["input_ids"], columns["parts"], strict=True)]
        if self.encoder_decoder:
            batch = self._two_sided(rows, index, labelled)
        else:
            batch = self._one_sided(rows, index, labelled)
        return replace(batch, texts=self.metric_texts(columns)) if labelled else batch

    def _one_sided(self, rows: Sequence[_Row], index: Numbers, labelled: bool) -> Batch:
        """Rows as single sequences; cells whose next token is learnt are `positions`."""
        found = [self._sequence(row) for row in rows]
        if not labelled:
            return flat_batch(*_joined([ids for ids, _, _ in found]), index, self.layout)
        after_T, _, _ = _joined([ids[1:] for ids, _, _ in found])
        cells = np.fromiter(chain.from_iterable(learnt[1:] for _, learnt, _ in found), dtype=bool).nonzero()[0]
        labels = {"positions": cells, "targets": after_T[cells], "prompts": np.array([n for _, _, n in found])}
        return flat_batch(*_joined([ids[:-1] for ids, _, _ in found]), index, self.layout, labels)

    def _sequence(self, row: _Row) -> tuple[list[int], list[bool], int]:
        """Tokens of a row, which of them are learnt, and how many stand before the last text to write."""
        ids, learnt = list(self.beginning), [False] * len(self.beginning)
        prompt = 0
        for number, part in enumerate(row.parts):
            if number % 2 == 0:
                part = [*part, *self.separator]
                prompt = len(ids) + len(part)
            ids += part
            learnt += [number % 2 == 1] * len(part)
        return ids, learnt, prompt

    def _two_sided(self, rows: Sequence[_Row], index: Numbers, labelled: bool) -> Batch:
        """What is given as the `source`, and what is to be written as the batch, behind a token to start with."""
        template = self._template
        before = [list(chain.from_iterable(row.parts[:-1] if labelled else row.parts)) for row in rows]
        sources = [[*template.special[0], *ids, *template.special[1]] for ids in before]
        source = flat_batch(*_joined(sources), index, self.layout)
        start = (self.beginning or self.end)[:1]  # the backbone puts its own there
        targets = [row.parts[-1] if labelled else [] for row in rows]
        labels: dict[str, Numbers] = {}
        if labelled:
            labels = {"targets": _joined(targets)[0], "prompts": np.ones(len(rows), dtype=np.int64)}
        batch = flat_batch(*_joined([[*start, *ids[:-1]] for ids in targets]), index, self.layout, labels)
        return replace(batch, source=source)

    @cached_property
    def _template(self) -> Template:
        return Template.of(self.tokenizer, 1)

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """None: `collate` makes them with the tokens."""
        return {}

    def metric_texts(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """`prompt` and `reference`: what was given and what should be written."""
        return {"prompt": columns["text"], "reference": columns["text_pair"]}

    @cached_property
    def label_space(self) -> LabelSpace:
        """Empty: what is to be learnt are tokens."""
        return LabelSpace(())

    def record(self) -> dict[str, Any]:
        """What reading new rows needs."""
        return super().record() | {"max_completion": self.max_completion}


class _Row:
    """The tokens of a row by parts, given and learnt in turn."""

    def __init__(self, ids: Sequence[int], sizes: Sequence[int]) -> None:
        ends = [0, *accumulate(sizes)]
        self.parts = [list(ids[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


def _joined(rows: Sequence[Sequence[int]]) -> tuple[Numbers, None, Numbers]:
    """Tokens (T,) of all rows, no token types, and tokens of each row (R,)."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64), None, np.array([len(ids) for ids in rows])
