"""A metric that keeps generated texts beside their references, over batches and ranks, and measures them at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from llm_arch.heads.text_metrics import check_names, signatures, text_metrics

_END = b"\xff"  # of a text: no byte of UTF-8
_AS_IT_IS = "surrogatepass"  # half a character is a text too


class GeneratedTexts(Metric):
    """Text metrics over all rows counted, whatever their order and the ranks that they were counted on.

    All texts are kept until `reset`. Within another metric call this one's `reset`, `update` (with no rows, if there
    are none) and `compute`, which gathers the rows of all ranks by itself.

    Args:
        names: which metrics, of `text_metrics`.
        language: the language of the texts.

    Raises:
        UserError: an unknown metric.
    """

    full_state_update = False
    texts: list[Tensor]

    def __init__(self, names: Sequence[str] = ("bleu", "chrf"), language: str = "en") -> None:
        super().__init__()
        check_names(names)
        self.names, self.language = tuple(names), language
        # Bytes, as numbers of the default type: torchmetrics makes these of a rank without rows.
        self.add_state("texts", [], dist_reduce_fx="cat")

    def update(
        self, hypotheses: Sequence[str], references: Sequence[str], prompts: Sequence[str] | None = None
    ) -> None:
        """Count one batch.

        Args:
            hypotheses: R generated texts.
            references: R right texts.
            prompts: R texts that they go on from, or None.
        """
        prompts = [""] * len(hypotheses) if prompts is None else prompts
        rows = list(zip(hypotheses, references, prompts, strict=True))
        data = b"".join(text.encode(errors=_AS_IT_IS) + _END for row in rows for text in row)
        if data:
            self.texts.append(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device, self.dtype))

    def rows(self) -> list[tuple[str, str, str]]:
        """Hypothesis, reference and prompt of each row counted, sorted; those of this rank outside of `compute`."""
        if isinstance(self.texts, list) and not self.texts:
            return []
        data = bytes(dim_zero_cat(self.texts).to("cpu", torch.uint8).numpy())
        texts = iter([text.decode(errors=_AS_IT_IS) for text in data.split(_END)[:-1]])
        return sorted(zip(texts, texts, texts, strict=True))

    def compute(self) -> dict[str, Tensor]:
        """Each metric by name; none where nothing was counted."""
        rows = self.rows()
        hypotheses, references, prompts = ([row[i] for row in rows] for i in range(3))
        found = text_metrics(self.names, hypotheses, references, self.language, prompts)
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in found.items()}

    def signatures(self) -> dict[str, Any]:
        """How `bleu` and `chrf` are computed, as sacrebleu writes it; none where neither is asked for."""
        return signatures(self.names, self.language)
