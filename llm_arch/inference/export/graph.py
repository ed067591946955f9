"""Backbone and head as one function of tensors, and what goes into and comes out of it.

Legend: T tokens, B sequences, L longest sequence, R rows, W words, D hidden size, C classes, K logits a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_arch.heads.language import VocabularyHead
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.types import Backbone, Batch, Head, OneSequence, UserError, Words

Kind = Literal["sequences", "tokens", "spans", "marked"]

IDS, MASK, TYPES, MARKERS = "input_ids", "attention_mask", "token_type_ids", "markers"
INPUTS = (IDS, MASK, TYPES, MARKERS)
LOGITS, NULL = "logits", "no_answer"
SHORTEST = 2  # cells of a row: what is 1 is a case of its own to a trace


def kind_of(head: Head) -> Kind:
    """What a head gives logits for: `sequences`; `tokens` and `spans` for every token; `marked` for marked entities.

    Raises:
        UserError: the head writes texts or looks at the vocabulary.
    """
    if isinstance(head, VocabularyHead):
        raise UserError(
            f"{type(head).__name__} tells or writes tokens, and a graph is one pass without a loop; what can be "
            "exported are models that classify, tag words, answer questions, find relations, choose or predict numbers"
        )
    if isinstance(head, TokenClassification):
        return "tokens"
    if isinstance(head, QuestionAnswering):
        return "spans"
    return "marked" if isinstance(head, RelationExtraction) else "sequences"


@dataclass(frozen=True)
class Padded(Batch):
    """A padded batch whose sizes may be symbols of a trace; its pooling sums over the grid instead of scattering.

    Attributes:
        longest: L.
    """

    longest: int = 0

    @property
    def size(self) -> int:
        """B."""
        return self.starts.shape[0]

    @property
    def row_of_sequence(self) -> Tensor:
        """(B,): each sequence is a row."""
        return self.index

    def _grid(self, values_TD: Tensor) -> Tensor:
        return values_TD.reshape(self.size, self.longest, values_TD.shape[1])

    def mean(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the mean over each sequence's real tokens."""
        assert self.valid is not None
        kept_TD = hidden_TD * self.valid[:, None].to(hidden_TD.dtype)
        return self._grid(kept_TD).sum(1) / self.lengths[:, None].to(hidden_TD.dtype)

    def max(self, hidden_TD: Tensor) -> Tensor:
        """(B, D): the elementwise maximum over each sequence's real tokens."""
        assert self.valid is not None
        return self._grid(hidden_TD.masked_fill(~self.valid[:, None], float("-inf"))).amax(1)

    def around(self, hidden_TD: Tensor, offsets: Sequence[int]) -> Tensor:
        """(T, K, D): the states at K distances from each token, zeros beyond its sequence's ends."""
        assert self.valid is not None
        before, after = max(0, -min(offsets)), max(0, *offsets)
        kept_BLD = self._grid(hidden_TD * self.valid[:, None].to(hidden_TD.dtype))
        wide_BSD = pad(kept_BLD, (0, 0, before, after))
        # Ends are counted from the end: a graph has fewer steps than where they depend on the length.
        parts = [wide_BSD[:, before + offset : (offset - after) or None] for offset in offsets]
        return torch.cat(parts, 2).view(-1, len(offsets), hidden_TD.shape[1])


class Graph(nn.Module):
    """(B, L) tensors → logits: what is exported.

    Each sequence begins at the left of its row, and `attention_mask` is 1 where there is a token, else 0.

    Args:
        backbone: in eval mode.
        head: in eval mode.
        types: whether token types are an input.
    """

    def __init__(self, backbone: Backbone, head: Head, *, types: bool) -> None:
        super().__init__()
        if backbone.encoder_decoder:
            raise UserError("an encoder–decoder writes texts in a loop, which a graph is not; export an encoder")
        self.backbone, self.head = backbone, head
        self.kind: Kind = kind_of(head)
        self.inputs = [IDS, MASK, *([TYPES] if types else []), *([MARKERS] if self.kind == "marked" else [])]
        self.outputs = [LOGITS, *([NULL] if self.kind == "spans" else [])]

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits from (B, L) integers, in the order of `inputs`; markers are (B, 4), places in their sequence.

        Returns:
            (B, …) of each sequence; of `tokens` (B, L, C); of `spans` (B, L, 2), and (B,) that there is no answer.
        """
        given = dict(zip(self.inputs, values, strict=True))
        batch = _batch(given, self.kind)
        logits: Tensor = self.head(self.backbone(batch), batch).float()
        count, length = given[IDS].shape
        if self.kind == "tokens":
            return logits.view(count, length, -1)
        if self.kind == "spans":
            tokens = count * length
            return logits[:tokens].view(count, length, 2), logits[tokens:, 0]
        return logits


def _batch(given: Mapping[str, Tensor], kind: Kind) -> Padded:
    ids_BL, mask_BL = given[IDS], given[MASK]
    count, length = ids_BL.shape
    at = {"device": ids_BL.device, "dtype": torch.long}
    index_B = torch.arange(count, **at)  # type: ignore[call-overload]
    starts_B = index_B * length
    segments_T = index_B[:, None].expand(count, length).reshape(-1)
    words = None
    if kind in ("tokens", "spans"):  # of every token, as if each were a word
        places_T = torch.arange(count * length, **at)  # type: ignore[call-overload]
        words = Words(places_T, segments_T, places_T, places_T)
    elif kind == "marked":
        places_N = (given[MARKERS] + starts_B[:, None]).reshape(-1)
        words = Words(places_N, places_N, places_N, places_N)
    return Padded(
        input_ids=ids_BL.reshape(-1),
        position_ids=torch.arange(length, **at).expand(count, length).reshape(-1),  # type: ignore[call-overload]
        segments=segments_T,
        starts=starts_B,
        lengths=mask_BL.sum(1),
        index=index_B,
        token_type_ids=given[TYPES].reshape(-1) if TYPES in given else None,
        valid=mask_BL.reshape(-1).bool(),
        words=words,
        rows=count,
        longest=length,
    )


def grids(batch: Batch, inputs: Sequence[str]) -> dict[str, Tensor]:
    """What a graph is given of a batch in either layout: int64 tensors by name.

    Args:
        batch: its tokens.
        inputs: the graph's inputs.
    """
    if isinstance(batch, OneSequence) and MARKERS not in inputs and len(batch.ids) >= SHORTEST:
        return _one(batch, inputs)  # the usual request, quickly
    longest = max(SHORTEST, int(batch.lengths.max()))
    place_BL = torch.arange(longest)
    mask_BL = place_BL < batch.lengths[:, None].cpu()
    cell_BL = (batch.starts[:, None].cpu() + place_BL).where(mask_BL, 0)

    def grid(values_T: Tensor) -> Tensor:
        return values_T.cpu()[cell_BL].where(mask_BL, 0)

    found = {IDS: grid(batch.input_ids), MASK: mask_BL.long()}
    if TYPES in inputs:
        types_T = batch.token_type_ids
        found[TYPES] = torch.zeros_like(found[IDS]) if types_T is None else grid(types_T)
    if MARKERS in inputs:
        assert batch.words is not None
        found[MARKERS] = batch.words.token.cpu().view(-1, 4) - batch.starts[:, None].cpu()
    return found


def _one(batch: OneSequence, inputs: Sequence[str]) -> dict[str, Tensor]:
    """The same of one sequence."""
    ids_1L = np.array([batch.ids])
    found = {IDS: torch.from_numpy(ids_1L), MASK: torch.from_numpy(np.ones_like(ids_1L))}
    if TYPES in inputs:
        types_T = batch.token_type_ids
        found[TYPES] = torch.zeros_like(found[IDS]) if types_T is None else types_T[None]
    return found


def head_logits(found: Sequence[Tensor], batch: Batch, kind: Kind) -> Tensor:
    """What the head itself would have given for a batch, from what the graph gave.

    Args:
        found: the graph's outputs.
        batch: flat or padded.
        kind: the graph's.
    """
    logits = found[0]
    if kind not in ("tokens", "spans"):
        return logits
    assert batch.words is not None
    token_W = batch.words.token.cpu()
    sequence_W = batch.segments.cpu()[token_W]
    words_WC = logits[sequence_W, token_W - batch.starts.cpu()[sequence_W]]
    if kind == "tokens":
        return words_WC
    null_R = logits.new_full((batch.rows,), float("inf"))
    null_R = null_R.scatter_reduce(0, batch.row_of_sequence.cpu(), found[1], "amin")
    return torch.cat([words_WC, null_R[:, None].expand(-1, 2)])
