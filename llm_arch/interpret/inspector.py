"""The way from a model directory to what happens inside it, row by row in input order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from llm_arch.inference.directory import Model
from llm_arch.inference.export.exported import Exported
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret.asked import asked, in_batches, rows_of
from llm_arch.interpret.attention import attention_maps
from llm_arch.interpret.explained_rows import ExplainedRows
from llm_arch.interpret.function import RowFunction, frozen
from llm_arch.interpret.head_importance import head_derivatives, knows_heads
from llm_arch.interpret.inside import Inside, Lens, LensPosition, Numbers
from llm_arch.interpret.logit_lens import LogitLens
from llm_arch.interpret.token_sequences import sequences_of_rows, token_sequences
from llm_arch.types import Batch, Target, UserError

Positions = Literal["asked", "all"]
# Rows that are looked into before the first is handed out: maps are large, H · T² numbers a layer.
_AT_ONCE, _AT_ONCE_WITH_MAPS = 256, 4


class Inspector:
    """Looks inside a transformer while it reads.

    Args:
        model: a model directory, or a loaded `Model`.
        attention: whether to tell how each head attends.
        importance: whether to tell which heads count for the explained number; None for wherever it is known where a
            model's heads lie.
        lens: whether to tell what each layer would say; None for decoders that can tell.
        positions: where the lens looks: where the model is `asked` (masks, the last token; everywhere in rows where it
            is not), or at `all` tokens.
        top: how many tokens the lens names.
        device: where to run; None for a GPU if there is one.
        batch_tokens: tokens a run at most.
        trust: modules outside this package that the model may use.

    Raises:
        UserError: the model is no transformer, or can't tell what is asked for; or nothing is asked for.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        attention: bool = True,
        importance: bool | None = None,
        lens: bool | None = None,
        positions: Positions = "asked",
        top: int = 5,
        device: str | None = None,
        batch_tokens: int = 2048,
        trust: tuple[str, ...] = (),
    ) -> None:
        if positions not in ("asked", "all"):
            raise UserError(f"positions must be asked or all, got {positions!r}")
        self.predictor = Predictor(model, device=device, batch_tokens=batch_tokens, trust=trust)
        self.model, self.attention, self.positions = self.predictor.model, attention, positions
        self._check_model()
        self.importance = self._tells_importance(importance)
        self.lens = self._lens(lens, top)
        if not (self.attention or self.importance or self.lens):
            raise UserError("nothing is asked for; ask for attention, importance or the lens")

    def _check_model(self) -> None:
        backbone = self.model.backbone
        which = "attention and layers are shown of transformers (BERT, GPT-2, Llama and the like)"
        if backbone.encoder_decoder:
            raise UserError(f"{which} with an encoder or a decoder alone, and this model has both")
        if isinstance(backbone, Exported):
            raise UserError(f"{which}; {self.model.directory} is exported: take the model that it was exported from")
        if not hasattr(backbone, "attentions"):
            raise UserError(f"{which}, and {type(backbone).__name__} is none; explain words instead")

    def _tells_importance(self, wanted: bool | None) -> bool:
        known = wanted is not False and knows_heads(self.model.backbone)
        if wanted and not known:
            kind = getattr(getattr(self.model.backbone, "config", None), "model_type", "this model")
            raise UserError(f"{kind}: it is not known where its heads lie; leave importance out")
        return known

    def _lens(self, wanted: bool | None, top: int) -> LogitLens | None:
        backbone, tokenizer = self.model.backbone, self.model.data.tokenizer
        if wanted is False or (wanted is None and not backbone.causal):
            return None

        def token_of(token: int) -> str:
            # A model may have more embeddings than the tokenizer has tokens.
            return str(tokenizer.convert_ids_to_tokens(token) or f"[{token}]")

        try:
            return LogitLens(backbone, self.model.head, token_of, top)
        except UserError:
            if wanted is None and top >= 1:
                return None
            raise

    def __call__(
        self,
        rows: Iterable[Mapping[str, Any] | str] | Mapping[str, Any] | str,
        *,
        target: str | None = None,
        against: str | None = None,
    ) -> list[Inside]:
        """What happens in texts or rows, as those of `stream`; a single one is taken as a list of one."""
        return list(self.stream(rows_of(self.model, rows), target=target, against=against))

    def stream(
        self, rows: Iterable[Mapping[str, Any]], *, target: str | None = None, against: str | None = None
    ) -> Iterator[Inside]:
        """What happens in rows, one after another in input order; memory does not grow with their number.

        Args:
            rows: mappings with the columns that the model was trained on.
            target: the number for which heads count, in the terms of the head's `target`; None for what the model
                predicts.
            against: what else could have been; heads count for the difference.

        Raises:
            UserError: for a row that can't be used or has no such target, naming its number.
        """

        def look(batch: Batch, values: Sequence[Mapping[str, Any]]) -> list[Inside]:
            return self._batch(batch, values, target, against)

        return in_batches(self.predictor, rows, look, _AT_ONCE_WITH_MAPS if self.attention else _AT_ONCE)

    def _batch(
        self, batch: Batch, values: Sequence[Mapping[str, Any]], target: str | None, against: str | None
    ) -> list[Inside]:
        backbone, head = self.model.backbone, self.model.head
        rows = ExplainedRows(self.model.data, values, batch)
        batch = head.asking(batch)
        targets: list[Target] = []
        derivatives: list[tuple[Numbers, ...]] = []
        with frozen(backbone, head):
            if self.importance:
                targets, _ = asked(self.model, batch, rows, values, target, against)
                derivatives = head_derivatives(RowFunction(backbone, head, batch, targets, self.predictor.batch_tokens))
            maps = attention_maps(backbone, batch) if self.attention else None
        lenses = None if self.lens is None else self._lenses(self.lens, batch)
        sequences = token_sequences(rows, batch, maps)
        return [
            Inside(
                index,
                sequences[row],
                tuple(np.abs(layer) for layer in derivatives[row]) if self.importance else None,
                None if lenses is None else lenses[row],
                targets[row].name if self.importance else None,
            )
            for row, index in enumerate(batch.row_index.tolist())
        ]

    def _lenses(self, lens: LogitLens, batch: Batch) -> list[Lens]:
        """What each row's lens shows."""
        starts, lengths = batch.starts.tolist(), batch.lengths.tolist()
        asked_at = set(lens.asked(batch, self.model.data.tokenizer.mask_token_id).tolist())
        cells: list[list[tuple[int, int, int]]] = []  # of each row: which sequence, which place, which token
        for sequences in sequences_of_rows(batch):
            everywhere = [
                (number, place, starts[sequence] + place)
                for number, sequence in enumerate(sequences)
                for place in range(lengths[sequence])
            ]
            own = [cell for cell in everywhere if cell[2] in asked_at]
            cells.append(own if own and self.positions == "asked" else everywhere)
        tokens = [token for row in cells for _, _, token in row]
        said = iter(lens(batch, torch.tensor(tokens, device=batch.input_ids.device)))
        return [Lens(lens.through, tuple(LensPosition(n, place, next(said)) for n, place, _ in row)) for row in cells]


def look_inside(
    model: str | Path | Model,
    rows: Iterable[Mapping[str, Any] | str] | Mapping[str, Any] | str,
    *,
    target: str | None = None,
    against: str | None = None,
    **options: Any,
) -> list[Inside]:
    """What happens inside a transformer that reads texts or rows.

    Args:
        model: a model directory, or a loaded `Model`.
        rows: texts, or mappings with the columns that the model was trained on; or a single one.
        target: the number for which heads count, such as a label; None for what the model predicts.
        against: what else could have been; heads count for the difference.
        **options: those of `Inspector`.
    """
    return Inspector(model, **options)(rows, target=target, against=against)
