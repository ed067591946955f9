"""What a head says of the numbers that explanations are about.

Legend: R rows of a batch, M rows of logits, C columns of these.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llm_arch.types.batch import Batch
from llm_arch.types.errors import UserError
from llm_arch.types.explaining import Reading, Target, weighted_sums
from llm_arch.types.values import Prediction


class Explained:
    """The part of a head that explanations ask: which number of a row is meant, and what it is."""

    def logit_rows(self, batch: Batch) -> Tensor:
        """(M,) which of the batch's R rows each row of the logits is about; here one for each sequence."""
        return batch.row_of_sequence

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """Which number of a row is explained.

        Args:
            prediction: what this head has decoded of the row, complete.
            reading: the row.
            wanted: what the user asks for, in the head's own terms, such as a label; None for what was predicted.

        Raises:
            UserError: there is nothing of that name, or this head does not say which number is meant.
        """
        raise UserError(
            f"what {type(self).__name__} says can't be explained; heads that choose labels, entities, relations, "
            "answers, choices, numbers or single tokens can"
        )

    def contrast(self, target: Target, against: Target) -> Target:
        """What speaks for one target and against another: the difference of their numbers."""
        return target.rather_than(against)

    def asking(self, batch: Batch) -> Batch:
        """The batch, with what this head needs to give the logits that are explained."""
        return batch

    def explained(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) the number of each row that is explained, differentiable.

        Args:
            logits: of `forward`.
            batch: their batch, in either layout.
            targets: of the R rows.
        """
        return weighted_sums(logits, self.logit_rows(batch), targets)

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) how probable this head takes each row's target to be; of a contrast, the difference of both.

        What faithfulness is measured in. Heads that give no probabilities measure it in the number itself.

        Args:
            logits: of `forward`.
            batch: their batch, in either layout.
            targets: of the R rows.
        """
        return self.explained(logits, batch, targets)
