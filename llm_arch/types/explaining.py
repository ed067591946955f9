"""What is explained of a row: a number made of the logits that a head gives.

Legend: M rows of logits, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_arch.types.errors import UserError

Cell = tuple[int, int, float]  # which of its row's rows of logits, which column, and the weight


@dataclass(frozen=True)
class Target:
    """A number of a row: a weighted sum of some of its logits.

    Attributes:
        name: what it says, in words, such as "label urgent".
        cells: the logits that count: the place among the row's own rows of logits, the column (0 where logits are
            numbers), and the weight.
        offset: what is added.
        wanted: how a user asks for it, where they can: of another model too.
        predicted: the name of what the model predicts, which may be another.
    """

    name: str
    cells: tuple[Cell, ...]
    offset: float = 0.0
    wanted: str | None = None
    predicted: str = ""

    def rather_than(self, other: Target) -> Target:
        """Their difference: what speaks for this one and against the other (Yin & Neubig 2022).

        Raises:
            UserError: both are the same.
        """
        if self.cells == other.cells:
            raise UserError(f"{self.name} can't be set against itself; name another target to compare with")
        against = tuple((place, column, -weight) for place, column, weight in other.cells)
        return Target(f"{self.name} rather than {other.name}", self.cells + against, self.offset - other.offset)


@dataclass(frozen=True)
class Reading:
    """What a head may ask of the row whose prediction is explained.

    Attributes:
        texts: the texts of the row, by name.
        words: first character and end of each of the row's `Batch.words`; empty where it has none.
        token_ids: the tokens of a text by itself, without special tokens.
        token_text: a token as text.
    """

    texts: Mapping[str, str]
    words: Sequence[tuple[int, int]]
    token_ids: Callable[[str], Sequence[int]]
    token_text: Callable[[int], str]

    def words_of(self, start: int, end: int, text: str) -> tuple[int, int]:
        """The first word that has characters of a span, and the one after the last.

        Args:
            start: the span's first character.
            end: the character after its last.
            text: the text that it is of.

        Raises:
            UserError: the span is not within the text, or no word is in it.
        """
        if not 0 <= start < end <= len(text):
            raise UserError(
                f"the span {start}-{end} is not within the text, which has {len(text)} characters (end exclusive)"
            )
        inside = [i for i, (first, last) in enumerate(self.words) if last > start and first < end]
        if not inside:
            raise UserError(f"the span {start}-{end} has no word in it that the model has read; name another")
        return inside[0], inside[-1] + 1


def weighted_sums(logits: Tensor, row_M: Tensor, targets: Sequence[Target]) -> Tensor:
    """(R,) the number of each row, differentiable.

    Args:
        logits: (M,) or (M, C).
        row_M: which row each row of logits is about; those of a row in order, in whatever company.
        targets: of the R rows.

    Raises:
        UserError: a target has a cell that its row lacks.
    """
    rows = len(targets)
    cells = [(row, *cell) for row, target in enumerate(targets) for cell in target.cells]
    count_R = torch.bincount(row_M, minlength=rows)
    row, place, column = (torch.tensor([c[i] for c in cells], dtype=torch.long, device=row_M.device) for i in range(3))
    if bool((place >= count_R[row]).any()):
        name = targets[int(row[int((place >= count_R[row]).nonzero()[0])])].name
        raise UserError(f"{name} is none of what the model says of this row; name another target")
    index = row_M.argsort(stable=True)[(count_R.cumsum(0) - count_R)[row] + place]
    exact = torch.promote_types(logits.dtype, torch.float32)
    found = (logits[index, column] if logits.dim() > 1 else logits[index]).to(exact)
    weight = torch.tensor([cell[3] for cell in cells], dtype=exact, device=row_M.device)
    offset_R = torch.tensor([target.offset for target in targets], dtype=exact, device=row_M.device)
    return offset_R.index_add(0, row, found * weight)
