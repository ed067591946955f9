"""What every method of attribution gives, and what it is given.

Legend: T tokens of the batch, R rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from llm_arch.interpret.function import RowFunction
from llm_arch.interpret.words import Unit

Needs = Literal["tokens", "gradients", "attention"]


@dataclass(frozen=True)
class Given:
    """The rows that are explained.

    Attributes:
        function: the model, with the rows and their targets.
        fixed_T: (T,) tokens that are not explained: special ones and the like.
        words: the words of each row.
        tokens: the tokens of each row that show text.
        special_ids: ids of tokens that can stand for nothing, by what users call them: `mask`, `pad`, `unknown`, `end`.
    """

    function: RowFunction
    fixed_T: Tensor
    words: Sequence[Sequence[Unit]]
    tokens: Sequence[Sequence[Unit]]
    special_ids: dict[str, int]


@dataclass(frozen=True)
class Attribution:
    """Scores of the rows.

    Attributes:
        of: whether there is a score for each token of the batch, or for each word of each row.
        scores: (T,) of tokens, or (W,) of the words of all rows one after another.
        value_R: the number that is explained.
        baseline_R: that of the baseline; None where there is none.
        settings: of each row, as they came to be.
    """

    of: Literal["tokens", "words"]
    scores: Tensor
    value_R: Tensor
    baseline_R: Tensor | None
    settings: list[dict[str, Any]] = field(default_factory=list)


class Method(ABC):
    """A way to say which words a number comes from. Its constructor's arguments are its settings.

    Attributes:
        name: what users call it.
        needs: what it needs of a model: to be run on other tokens, gradients of embeddings, or attention.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
