"""How surprising texts are to a language model: perplexity, and pseudo-perplexity under a masked one.

A masked model gives a text no probability. Salazar et al. (2020) mask one token after another and add up what each
costs: -Σ log P(token | all others). Low on the kind of text that a model was pretrained on, it tells how far others are
from that. Under a causal model the perplexity itself takes one pass.

Legend: R texts, P pieces of texts, I sequences of which each has one token masked, T tokens of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llm_arch.corpus.pieces import Numbers, Pieces, cut
from llm_arch.corpus.template import Template
from llm_arch.data.batching import Cut, evaluation_plan
from llm_arch.data.collate import flat_batch
from llm_arch.heads.language import VocabularyHead
from llm_arch.inference.directory import Model, load
from llm_arch.precision import use_fast_fp32
from llm_arch.task import Task
from llm_arch.types import Batch, UserError

_CHUNK = 256  # texts at a time
_LENGTH = 512  # of a piece where nothing limits it
_LARGEST = 700.0  # whose exponential is a number


@dataclass(frozen=True)
class Surprise:
    """What a text costs a language model, or several texts together: `sum(found, Surprise())`.

    Attributes:
        tokens: how many tokens it had to predict. Special tokens do not count.
        nll: negative log-likelihood of all of them together, in nats.
        text_bytes: bytes of the text in UTF-8.
    """

    tokens: int = 0
    nll: float = 0.0
    text_bytes: int = 0

    def __add__(self, other: Surprise) -> Surprise:
        return Surprise(self.tokens + other.tokens, self.nll + other.nll, self.text_bytes + other.text_bytes)

    @property
    def perplexity(self) -> float:
        """The exponential of nll / tokens; NaN without tokens."""
        mean = self.nll / self.tokens if self.tokens else math.nan
        return math.inf if mean > _LARGEST else math.exp(mean)

    @property
    def bits_per_byte(self) -> float:
        """The same in bits over bytes, which does not depend on how the tokenizer cuts; NaN without tokens."""
        return self.nll / math.log(2) / self.text_bytes if self.tokens else math.nan


class PseudoPerplexity:
    """What texts cost a model that was trained as a language model, masked or causal.

    Texts longer than the model takes are cut into pieces; nothing is left out. A masked model costs as many sequences
    as there are tokens. A causal one predicts a text's first token where its texts begin with a special token, and
    no end of a text.

    Args:
        model: a model directory, a loaded `Model`, or a `Task`.
        tokenizer: the fast tokenizer of a `Task`; a model has its own.
        max_length: longest piece in tokens, special tokens included; None for the one that a model was trained with,
            and for all positions of a `Task`'s backbone (512 where it has no limit).
        device: where to run; None for a GPU if there is one, and for where a `Task` is.
        batch_tokens: tokens a batch at most.
        trust: modules outside this package that a model directory may use.

    Raises:
        UserError: the model is no language model, or nothing can be masked.
    """

    def __init__(
        self,
        model: str | Path | Model | Task,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        device: str | None = None,
        batch_tokens: int = 8192,
        trust: tuple[str, ...] = (),
    ) -> None:
        if batch_tokens < 1:
            raise UserError(f"batch_tokens must be at least 1, got {batch_tokens}")
        if isinstance(model, str | Path):
            model = load(model, trust=trust)
        if isinstance(model, Task):
            if tokenizer is None:
                raise UserError("a Task does not know its tokenizer; give tokenizer=data.tokenizer")
            longest, starts, where = model.backbone.max_length or _LENGTH, True, device or model.device
        else:
            tokenizer, longest = tokenizer or model.data.tokenizer, model.data.max_length
            starts = getattr(model.data, "document_start", "bos") != "none"
            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not isinstance(model.head, VocabularyHead):
            raise UserError(
                f"{type(model.head).__name__} is no head of a language model; take a model that was trained with "
                "MaskedLanguageModel, BertPretraining or LanguageModel"
            )
        self.backbone, self.head, self.tokenizer = model.backbone, model.head, tokenizer
        self.batch_tokens = batch_tokens
        self.device = torch.device(where)
        if self.device.type == "cpu":
            use_fast_fp32()
        self.backbone.to(self.device)
        self.head.to(self.device)
        most = self.backbone.max_length or math.inf
        self.max_length = int(min(longest, most)) if max_length is None else max_length
        if self.head.kind == "masked":
            self._template = Template.of(tokenizer, 1)
            if tokenizer.mask_token_id is None:
                raise UserError("the tokenizer has no mask token; take the one that the model was trained with")
            needed = self._template.size + 1
        else:
            first = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            self._first = [first] if starts and first is not None else []
            needed = 1
        if not needed <= self.max_length <= most:
            raise UserError(f"max_length must be in {needed} … {most}, got {self.max_length}")

    def __call__(self, texts: Iterable[str] | str) -> list[Surprise]:
        """What each text costs.

        Args:
            texts: the texts; a single one is taken as a list of one.
        """
        return list(self.stream([texts] if isinstance(texts, str) else texts))

    def stream(self, texts: Iterable[str]) -> Iterator[Surprise]:
        """What each text costs, one after another in input order; memory does not grow with their number.

        Args:
            texts: the texts.
        """
        texts = iter(texts)
        while chunk := list(islice(texts, _CHUNK)):
            with _evaluating(self.backbone, self.head):
                found = self._chunk(chunk)
            yield from found

    def _chunk(self, texts: list[str]) -> list[Surprise]:
        ids_R = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        tokens_R, nll_R = (self._masked if self.head.kind == "masked" else self._causal)(ids_R)
        bytes_R = [len(text.encode()) for text in texts]
        return [Surprise(*of_text) for of_text in zip(tokens_R.tolist(), nll_R.tolist(), bytes_R, strict=True)]

    def _masked(self, ids_R: list[list[int]]) -> tuple[Numbers, NDArray[np.float64]]:
        """Tokens and costs of each text, every token masked once."""
        before, behind = self._template.special
        pieces = _pieces(ids_R, self.max_length - self._template.size, overlap=0)
        sequences = [np.array([*before, *ids, *behind]) for ids in _cut_out(ids_R, pieces)]
        piece_I = np.repeat(np.arange(len(pieces)), pieces.length)
        first_P = np.cumsum(pieces.length) - pieces.length
        place_I = np.arange(len(piece_I)) - np.repeat(first_P, pieces.length) + len(before)
        lengths_I = pieces.length[piece_I] + self._template.size
        nll_R = np.zeros(len(ids_R))
        for chosen in self._plan(lengths_I):
            ids_T = np.concatenate([sequences[i] for i in piece_I[chosen]])
            lengths = lengths_I[chosen]
            positions = np.cumsum(lengths) - lengths + place_I[chosen]
            targets = ids_T[positions]
            ids_T[positions] = self.tokenizer.mask_token_id
            batch = flat_batch(ids_T, None, lengths, chosen, labels={"positions": positions, "targets": targets})
            np.add.at(nll_R, pieces.document[piece_I[chosen]], self._scores(batch))
        return np.bincount(pieces.document, pieces.length, minlength=len(ids_R)).astype(np.int64), nll_R

    def _causal(self, ids_R: list[list[int]]) -> tuple[Numbers, NDArray[np.float64]]:
        """Tokens and costs of each text, every token from those before it."""
        ids_R = [self._first + ids for ids in ids_R]
        pieces = _pieces(ids_R, self.max_length, overlap=1)
        sequences = [np.array(ids) for ids in _cut_out(ids_R, pieces)]
        cells_P = pieces.length - 1
        nll_R = np.zeros(len(ids_R))
        for chosen in self._plan(cells_P):
            labels = {"targets": np.concatenate([sequences[i][1:] for i in chosen])}
            ids_T = np.concatenate([sequences[i][:-1] for i in chosen])
            nll_T = self._scores(flat_batch(ids_T, None, cells_P[chosen], chosen, labels=labels))
            np.add.at(nll_R, np.repeat(pieces.document[chosen], cells_P[chosen]), nll_T)
        return np.bincount(pieces.document, cells_P, minlength=len(ids_R)).astype(np.int64), nll_R

    def _plan(self, lengths: Numbers) -> list[Numbers]:
        return evaluation_plan(Cut(lengths, None, self.batch_tokens), 1) if len(lengths) else []

    @torch.inference_mode()
    def _scores(self, batch: Batch) -> NDArray[np.float64]:
        """Negative log-likelihood of each target."""
        batch = batch.to(self.device)
        scores: NDArray[np.float64] = self.head.token_scores(self.backbone(batch), batch)[0].double().cpu().numpy()
        return scores


@contextmanager
def _evaluating(*parts: nn.Module) -> Iterator[None]:
    """Without dropout, and afterwards as before."""
    training = [(module, module.training) for part in parts for module in part.modules()]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for module, was in training:
            module.training = was


def _pieces(ids_R: Sequence[Sequence[int]], size: int, overlap: int) -> Pieces:
    lengths_R = np.array([len(ids) for ids in ids_R], dtype=np.int64)
    return cut(np.arange(len(ids_R)), lengths_R, np.zeros_like(lengths_R), size, overlap=overlap)


def _cut_out(ids_R: Sequence[list[int]], pieces: Pieces) -> Iterator[list[int]]:
    for document, start, length in zip(pieces.document, pieces.start, pieces.length, strict=True):
        yield ids_R[document][start : start + length]
