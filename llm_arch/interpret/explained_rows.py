"""The rows of a batch between their texts and their scores: what methods are given of them, and what becomes of it.

Legend: T tokens of the batch, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llm_arch.data.masked_rows import stand_ins
from llm_arch.data.module import DataModule
from llm_arch.data.origins import NOWHERE
from llm_arch.interpret.explanation import Explanation, TokenShare, Unread, WordShare
from llm_arch.interpret.function import RowFunction
from llm_arch.interpret.method import Attribution, Given, Method
from llm_arch.interpret.rows import read_of
from llm_arch.interpret.words import Unit, tokens_of, unread, words_of
from llm_arch.types import Batch, Reading, UserError


class ExplainedRows:
    """Rows, and which of their words each token shows.

    Args:
        data: how rows became tokens.
        values: the rows, in the order of the batch.
        batch: what became of them.
    """

    def __init__(self, data: DataModule, values: Sequence[Mapping[str, Any]], batch: Batch) -> None:
        self.data, self.batch = data, batch
        read = read_of(batch)
        lengths = torch.bincount(read.row_of_sequence[read.segments], minlength=read.rows).tolist()
        self.ids = [ids.tolist() for ids in read.input_ids.split(lengths)]
        self.origins = [data.origins(row) for row in values]
        for origins, ids in zip(self.origins, self.ids, strict=True):
            if len(origins.places) != len(ids):
                raise UserError(
                    f"{type(data).__name__} makes {len(ids)} tokens of a row and tells of {len(origins.places)} what "
                    "they show; have its `origins` go with its `encode`"
                )
        everything = [words_of(origins) for origins in self.origins]
        self.unread = [unread(origins, words) for origins, words in zip(self.origins, everything, strict=True)]
        # A mask that is asked about is no word of its text.
        mask = data.tokenizer.mask_token_id
        self.places = [
            [NOWHERE if token == mask else place for place, token in zip(origins.places, ids, strict=True)]
            for origins, ids in zip(self.origins, self.ids, strict=True)
        ]
        shown = [origins._replace(places=own) for origins, own in zip(self.origins, self.places, strict=True)]
        self.words = [words_of(origins) for origins in shown]
        self.tokens = [tokens_of(origins) for origins in shown]

    @property
    def readings(self) -> list[Reading]:
        """What a head may ask of each row."""
        words, tokenizer = self.batch.words, self.data.tokenizer
        spans: list[list[tuple[int, int]]] = [[] for _ in self.origins]
        if words is not None:
            for row, start, end in zip(words.row.tolist(), words.start.tolist(), words.end.tolist(), strict=True):
                spans[row].append((start, end))

        def token_ids(text: str) -> list[int]:
            found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return found

        def token_text(token: int) -> str:
            return str(tokenizer.decode([token]))

        pairs = zip(self.origins, spans, strict=True)
        return [Reading(origins.texts, own, token_ids, token_text) for origins, own in pairs]

    def given(self, function: RowFunction, special: bool) -> Given:
        """What methods are given.

        Args:
            function: the model on these rows.
            special: whether special tokens are explained too.
        """
        fixed = [place == NOWHERE and not special for row in self.places for place in row]
        fixed_T = torch.tensor(fixed, device=self.batch.input_ids.device)
        return Given(function, fixed_T, self.words, self.tokens, stand_ins(self.data.tokenizer))

    def explanations(self, targets: Sequence[Any], found: Attribution, method: Method) -> list[Explanation]:
        """The scores as explanations.

        Args:
            targets: what was explained of each row.
            found: the scores.
            method: that gave them.
        """
        sizes = [len(ids) for ids in self.ids] if found.of == "tokens" else [len(words) for words in self.words]
        scores = [part.tolist() for part in found.scores.split(sizes)]
        baselines = [None] * len(sizes) if found.baseline_R is None else found.baseline_R.tolist()
        explanations = []
        for row, index in enumerate(self.batch.row_index.tolist()):
            names = [*self.origins[row].texts]
            words = tuple(
                self._word(row, number, unit, scores[row], found.of) for number, unit in enumerate(self.words[row])
            )
            shown = {token for unit in self.words[row] for token in unit.tokens}
            beside = [s for token, s in enumerate(scores[row]) if token not in shown] if found.of == "tokens" else []
            explanations.append(
                Explanation(
                    index,
                    dict(self.origins[row].texts),
                    targets[row].name,
                    float(found.value_R[row]),
                    words,
                    sum(beside, 0.0),
                    baselines[row],
                    method.name,
                    found.settings[row],
                    tuple(Unread(names[text], start, end) for text, start, end in self.unread[row]),
                    targets[row].wanted,
                    targets[row].predicted,
                )
            )
        return explanations

    def _word(self, row: int, number: int, unit: Unit, scores: Sequence[float], of: str) -> WordShare:
        text, start, end = unit.place
        name, characters = [*self.origins[row].texts.items()][text]
        if of == "words":
            return WordShare(characters[start:end], name, start, end, scores[number])
        shares: dict[Any, float] = {}  # what stands in several windows is one token
        for token in unit.tokens:
            key = self.places[row][token], self.ids[row][token]
            shares[key] = shares.get(key, 0.0) + scores[token]
        tokens = tuple(
            TokenShare(self.data.tokenizer.convert_ids_to_tokens(token), first, last, score)
            for ((_, first, last), token), score in shares.items()
        )
        return WordShare(characters[start:end], name, start, end, sum(token.score for token in tokens), tokens)
