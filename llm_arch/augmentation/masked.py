"""Words replaced by others that a masked language model finds likely there (Kobayashi 2018; Wu et al. 2019).

Legend: M masks, K candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_arch.augmentation.base import Method, Request, checked_least, checked_share, how_many
from llm_arch.augmentation.passages import Passage, is_unspaced
from llm_arch.augmentation.rows import Values
from llm_arch.corpus.template import Template
from llm_arch.data.batching import Cut, evaluation_plan
from llm_arch.data.collate import flat_batch
from llm_arch.data.words import split
from llm_arch.heads.language import MaskedHead
from llm_arch.inference.directory import Model, load
from llm_arch.precision import use_fast_fp32
from llm_arch.types import UserError

_SPARE = 16  # best words looked at beyond `top_k`, of which some are the original in another case


class _Masked(NamedTuple):
    """A text with some words masked.

    Attributes:
        ids: its tokens, one mask for each such word.
        masks: where the masks are.
        words: which word of the passage each was.
    """

    ids: list[int]
    masks: list[int]
    words: list[int]


class MaskedReplacement(Method):
    """A share of the words of each text is masked, and each mask filled by sampling among the likeliest words.

    All words of a text are masked at once. The original word, in whatever case, is never drawn, nor are pieces of
    words, and a capital stays one. Longer texts than the model takes are read in parts. What is labelled stays. Rows do
    not depend on their batch beyond rounding in the model's probabilities.

    Args:
        model: a model directory trained with MaskedLanguageModel or BertPretraining, or a loaded `Model`.
        share: share of the words that are replaced, in (0, 1]; at least one word is.
        top_k: how many of the likeliest words to draw from.
        temperature: of drawing; below 1 the likeliest are preferred.
        device: where to run; None for a GPU if there is one.
        batch_tokens: tokens a batch at most.
        trust: modules outside this package that the model may use.

    Raises:
        UserError: when the model has no masks.
    """

    name = "masked"

    def __init__(
        self,
        model: str | Path | Model,
        *,
        share: float = 0.15,
        top_k: int = 10,
        temperature: float = 1.0,
        device: str | None = None,
        batch_tokens: int = 4096,
        trust: tuple[str, ...] = (),
    ) -> None:
        checked_least(top_k=top_k, batch_tokens=batch_tokens)
        if temperature <= 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        self.share, self.top_k, self.temperature = checked_share(share), top_k, temperature
        self.batch_tokens = batch_tokens
        self.model = model if isinstance(model, Model) else load(model, trust=trust)
        if not isinstance(self.model.head, MaskedHead):
            raise UserError(
                f"{self.model.directory} holds a {type(self.model.head).__name__}, which fills no masks; name a model "
                "that was trained with a MaskedLanguageModel head, as pretrain/mlm does"
            )
        self.head: MaskedHead = self.model.head
        self.tokenizer = self.model.data.tokenizer
        if self.tokenizer.mask_token_id is None:
            raise UserError(f"the tokenizer of {self.model.directory} has no mask token; name another model")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cpu":
            use_fast_fp32()
        for part in (self.model.backbone, self.head):
            part.to(self.device)
        self._template = Template.of(self.tokenizer, 1)
        self._words = whole_words(self.tokenizer, self.model.backbone.embeddings.num_embeddings)
        allowed_V = torch.tensor([bool(word) for word in self._words])
        if not allowed_V.any():
            raise UserError(f"the tokenizer of {self.model.directory} has no token that is a whole word")
        self._barred_V = torch.zeros(len(self._words)).masked_fill(~allowed_V, -torch.inf).to(self.device)

    def __call__(self, requests: Sequence[Request]) -> list[Values | None]:
        """New rows."""
        passages = [(request, passage) for request in requests for passage in request.row.passages]
        texts = [passage.text for _, passage in passages]
        encodings = self.tokenizer(texts, add_special_tokens=False).encodings if texts else []
        masked: list[_Masked] = []
        randoms: list[Random] = []
        for (request, passage), encoding in zip(passages, encodings, strict=True):
            # A passage of its own for each text of the row: those before it do not use up its numbers.
            randoms.append(Random(f"{request.key} {passage.column}"))
            masked.append(self._masked(passage, encoding, randoms[-1]))
        filled = iter(self._fill(masked))
        edits: list[dict[int, tuple[str, ...]]] = []
        for (_, passage), one, random in zip(passages, masked, randoms, strict=True):
            of_passage: dict[int, tuple[str, ...]] = {}
            for word in one.words:
                new = self._drawn(passage.texts[word], *next(filled), random)
                if new is not None:
                    of_passage[word] = (new,)
            edits.append(of_passage)
        of_row = iter(edits)
        return [request.row.edited([next(of_row) for _ in request.row.passages]) for request in requests]

    def _masked(self, passage: Passage, encoding: Any, random: Random) -> _Masked:
        """Mask some words, each by one mask however many tokens it has."""
        count = min(how_many(self.share, len(passage.words)), len(passage.words))
        chosen = sorted(random.sample(range(len(passage.words)), count))
        ids, offsets = encoding.ids, encoding.offsets
        found = _Masked([], [], [])
        token = 0
        for word in chosen:
            start, end = passage.words[word]
            while token < len(ids) and offsets[token][1] <= start:
                found.ids.append(ids[token])
                token += 1
            if token == len(ids) or offsets[token][0] >= end:
                continue  # the tokenizer dropped the word, or it shares its token with the one before
            found.masks.append(len(found.ids))
            found.words.append(word)
            found.ids.append(self.tokenizer.mask_token_id)
            while token < len(ids) and offsets[token][0] < end:
                token += 1
        found.ids.extend(ids[token:])
        return found

    def _fill(self, masked: Sequence[_Masked]) -> list[tuple[list[int], list[float]]]:
        """The best tokens of every mask and their logits, best first; text by text, mask by mask."""
        before, behind = self._template.special
        limits = [n for n in (self.model.data.max_length, self.model.backbone.max_length) if n is not None]
        room = min(limits) - self._template.size
        if room < 1:
            raise UserError(f"{self.model.directory} takes {min(limits)} tokens, too few for a text")
        sequences: list[NDArray[np.int64]] = []
        places: list[list[int]] = []  # of the masks, in each sequence
        for one in masked:
            for start in range(0, len(one.ids), room):
                inside = [place - start for place in one.masks if start <= place < start + room]
                if inside:
                    sequences.append(np.array([*before, *one.ids[start : start + room], *behind], dtype=np.int64))
                    places.append([place + len(before) for place in inside])
        found: list[list[tuple[list[int], list[float]]]] = [[] for _ in sequences]
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        for chosen in evaluation_plan(Cut(lengths, None, self.batch_tokens), 1) if sequences else []:
            starts = np.cumsum(lengths[chosen]) - lengths[chosen]
            positions = np.concatenate([start + np.array(places[i]) for start, i in zip(starts, chosen, strict=True)])
            ids_T = np.concatenate([sequences[i] for i in chosen])
            ids_MK, logits_MK = self._best(ids_T, lengths[chosen], positions)
            pairs = zip(ids_MK.tolist(), logits_MK.tolist(), strict=True)
            for i in chosen:
                found[i] = [next(pairs) for _ in places[i]]
        return [pair for of_sequence in found for pair in of_sequence]

    @torch.inference_mode()
    def _best(
        self, ids_T: NDArray[np.int64], lengths: NDArray[np.int64], positions_M: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """(M, K) the words that fit best, and their logits."""
        batch = flat_batch(ids_T, None, lengths, np.arange(len(lengths)), labels={"positions": positions_M})
        batch = batch.to(self.device)
        logits_MV = self.head.token_logits(self.model.backbone(batch), batch).float() + self._barred_V
        logits_MK, ids_MK = logits_MV.topk(min(self.top_k + _SPARE, logits_MV.shape[1]), 1)
        return ids_MK, logits_MK.double()

    def _drawn(self, original: str, ids: list[int], logits: list[float], random: Random) -> str | None:
        """A word in place of another, or None where there is none."""
        number = random.random()
        pairs = [(self._words[i], logit) for i, logit in zip(ids, logits, strict=True) if logit > -np.inf]
        pairs = [
            (word, logit)
            for word, logit in pairs
            if word.casefold() != original.casefold() and is_unspaced(word) == is_unspaced(original)
        ][: self.top_k]
        if not pairs:
            return None
        weights = np.exp((np.array([logit for _, logit in pairs]) - pairs[0][1]) / self.temperature)
        drawn = int(np.searchsorted(np.cumsum(weights), number * weights.sum(), side="right"))
        word = pairs[min(drawn, len(pairs) - 1)][0]
        return word[0].upper() + word[1:] if original[0].isupper() else word


def whole_words(tokenizer: Any, size: int) -> list[str]:
    """The word that each token is behind a space; "" for pieces of words, punctuation and special tokens.

    Args:
        tokenizer: a fast tokenizer.
        size: V, which may be more than the tokens there are.
    """
    special = set(tokenizer.all_special_ids)
    count = min(size, len(tokenizer))
    texts = [tokenizer.decode([i]).strip() for i in range(count)]
    found = [""] * size
    alone = [
        i for i, text in enumerate(texts) if i not in special and text[:1].isalnum() and split(text) == [(0, len(text))]
    ]
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    encodings = tokenizer.backend_tokenizer.encode_batch([f"a {texts[i]}" for i in alone], add_special_tokens=False)
    for i, encoding in zip(alone, encodings, strict=True):
        if encoding.ids == [*first, i]:
            found[i] = texts[i]
    return found
