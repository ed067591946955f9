"""The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"): what each layer would say if it were last.

States of every layer go through what the states of the last go through: the model's final norm, where it has one, and
the projection to the vocabulary.

Legend: T tokens of the batch, M of them that are asked about, D hidden size, V vocabulary, K best tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from llm_arch.backbones.padding import Grid
from llm_arch.heads.language import MaskedHead, VocabularyHead
from llm_arch.heads.vocabulary import AT_ONCE
from llm_arch.interpret.inside import LensLayer, LensToken
from llm_arch.types import Backbone, Batch, Head, UserError

_CLOSE = 1e-3  # of what a norm makes of the last layer's output to the states that the model gives


class LogitLens:
    """States → what they would say, as tokens.

    Args:
        backbone: a transformer, in eval mode.
        head: in eval mode; where it says nothing of tokens, the embeddings of a decoder that reads out with these
            (GPT-2) serve instead.
        token_of: id → the token as the tokenizer writes it.
        top: K, how many tokens to name.

    Attributes:
        through: what makes tokens of states, in words.

    Raises:
        UserError: the model has nothing that makes tokens of states, or `top` is below 1.
    """

    def __init__(self, backbone: Backbone, head: Head, token_of: Callable[[int], str], top: int = 5) -> None:
        if top < 1:
            raise UserError(f"top must be at least 1, got {top}")
        self.backbone, self.head, self.token_of, self.top = backbone, head, token_of, top
        if isinstance(head, VocabularyHead):
            self.through = f"the head {type(head).__name__}"
        elif _reads_out_with_embeddings(backbone):
            self.through = f"the tied embeddings, since {type(head).__name__} says nothing of tokens"
        else:
            raise UserError(
                f"the logit lens needs a head that says tokens, such as LanguageModel or MaskedLanguageModel, or a "
                f"decoder with tied embeddings, such as GPT-2; {type(head).__name__} on "
                f"{_name_of(backbone)} has neither"
            )

        try:
            backbone.layers  # noqa: B018 - raises where there is no stack of them
        except UserError as error:
            raise UserError(
                f"{_name_of(backbone)}: the logit lens goes from layer to layer, and these are not found; leave it out"
            ) from error

    def logits(self, state_MD: Tensor) -> Tensor:
        """(M, V) of states as the last layer gives them."""
        if isinstance(self.head, VocabularyHead):
            return self.head.logits(state_MD)
        return linear(state_MD, self.backbone.embeddings.weight)

    def asked(self, batch: Batch, mask: int | None) -> Tensor:
        """(M,) the tokens at which the model says tokens.

        Those are masks, or the last token of each sequence.

        Args:
            batch: the rows, as `head.asking` gives it.
            mask: id of the mask token, if there is one.
        """
        if isinstance(self.head, MaskedHead):
            return (batch.input_ids == (-1 if mask is None else mask)).nonzero()[:, 0]
        cells_M = self.head.cells(batch) if isinstance(self.head, VocabularyHead) else None
        return batch.starts + batch.lengths - 1 if cells_M is None else cells_M

    @torch.no_grad()
    def __call__(self, batch: Batch, token_M: Tensor) -> list[tuple[LensLayer, ...]]:
        """What each layer would say at each of M tokens: the embeddings first, then all layers, lowest first.

        Args:
            batch: the rows.
            token_M: which of the batch's T tokens.
        """
        states, norm = self._states(batch)
        found: list[tuple[LensLayer, ...]] = []
        # Logits are held for so many tokens at a time, whatever the vocabulary.
        for some in token_M.split(max(1, AT_ONCE // self.backbone.embeddings.num_embeddings)):
            last_MV = self.logits(states[-1][some]).float().log_softmax(1)
            layers = [
                self._said(self.logits(norm(state_TD[some])).float().log_softmax(1), last_MV)
                for state_TD in states[:-1]
            ]
            found += zip(*layers, self._said(last_MV, last_MV), strict=True)
        return found

    def _states(self, batch: Batch) -> tuple[Sequence[Tensor], Callable[[Tensor], Tensor]]:
        """(T, D) of the embeddings and of each layer, and what turns those of a layer into such as the last gives."""
        raw: list[Tensor] = []

        def keep(module: nn.Module, given: Any, made: Any) -> None:
            raw.append(made[0] if isinstance(made, tuple) else made)

        hook = self.backbone.layers[-1].register_forward_hook(keep)
        try:
            hidden = self.backbone(batch, all_hidden=True)
        finally:
            hook.remove()
        assert hidden.layers is not None
        out = raw[-1]  # (1, T, D) or (B, L, D)
        last_TD = out[0] if out.shape[:2] == (1, len(batch.input_ids)) else Grid(batch).unpad(out)
        return hidden.layers, self._final_norm(last_TD, hidden.last_TD)

    def _final_norm(self, before_TD: Tensor, after_TD: Tensor) -> Callable[[Tensor], Tensor]:
        """What the model does to the states of its last layer, found by what it makes of them, whatever its name."""
        if _same(before_TD, after_TD):
            return nn.Identity()
        inside = {id(module) for layer in self.backbone.layers for module in layer.modules()}
        for module in self.backbone.modules():
            shapes = {tuple(parameter.shape) for parameter in module.parameters()}
            if id(module) in inside or shapes != {(before_TD.shape[1],)}:
                continue
            if _same(module(before_TD), after_TD):
                return module
        raise UserError(
            f"{_name_of(self.backbone)}: found no norm that gives the model's states from those of its last layer, "
            "which the logit lens needs; leave the lens out"
        )

    def _said(self, log_MV: Tensor, last_MV: Tensor) -> list[LensLayer]:
        """Of each token."""
        divergence_M = (last_MV.exp() * (last_MV - log_MV)).sum(1).clamp(min=0)
        score_MK, id_MK = log_MV.exp().topk(min(self.top, log_MV.shape[1]), 1)
        rows = zip(id_MK.tolist(), score_MK.tolist(), divergence_M.tolist(), strict=True)
        return [
            LensLayer(tuple(LensToken(self.token_of(i), p) for i, p in zip(ids, scores, strict=True)), divergence)
            for ids, scores, divergence in rows
        ]


def _reads_out_with_embeddings(backbone: Backbone) -> bool:
    same = backbone.embeddings.weight.shape[1] == backbone.hidden_size
    return backbone.causal and same and bool(backbone.head_style().get("tied"))


def _same(one_TD: Tensor, other_TD: Tensor) -> bool:
    return one_TD.shape == other_TD.shape and torch.allclose(one_TD.float(), other_TD.float(), rtol=_CLOSE, atol=_CLOSE)


def _name_of(backbone: Backbone) -> str:
    return str(getattr(getattr(backbone, "config", None), "model_type", type(backbone).__name__))
