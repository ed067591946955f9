"""Writing texts: completions, translations, summaries, answers, code, by a decoder or an encoder–decoder.

Legend: T tokens, R rows, M cells to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from llm_arch.heads.generated_texts import GeneratedTexts
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.text_metrics import check_names
from llm_arch.heads.vocabulary import LanguageModelMetrics
from llm_arch.types import Batch, Detokenizer, Hidden, LabelSpace, Loss, Prediction, UserError

_NONE = -1  # fills up rows of generated tokens


@dataclass(frozen=True)
class GeneratedPrediction(Prediction):
    """What was written for a row.

    Attributes:
        generated: as text.
        tokens: as token ids, the end left out.
    """

    generated: str
    tokens: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The text alone."""
        return {"generated": self.generated}


class TextGeneration(LanguageModel):
    """A language model that learns texts to write and is measured by what it writes.

    Training and validation predict each token of the right text from those before it: loss, perplexity and accuracy.
    In testing the texts are written as well and compared with the right ones.

    Args:
        hidden_size: D.
        label_space: without labels.
        metrics: what is measured of written texts: bleu, chrf, rouge1, rouge2, rougeL, distinct1, distinct2, token_f1,
            exact_match, edit_similarity, parses; see `text_metrics`.
        follow: the metric that early stopping and checkpoints follow: `perplexity`, or one of `metrics`, for which
            texts are written in each validation too.
        max_new_tokens: longest text to write, in tokens.
        beams: beams to search with; 1 takes the likeliest token each time.
        tied: see `LanguageModel`.
        top_k: see `LanguageModel`.
    """

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        metrics: Sequence[str] = (),
        follow: str = "perplexity",
        max_new_tokens: int = 64,
        beams: int = 1,
        tied: bool | None = None,
        top_k: int = 5,
    ) -> None:
        super().__init__(hidden_size, label_space, tied=tied, top_k=top_k)
        check_names(metrics)
        if follow not in ("perplexity", *metrics):
            raise UserError(f"head.follow must be perplexity or one of head.metrics {list(metrics)}, got {follow!r}")
        for name, value in (("max_new_tokens", max_new_tokens), ("beams", beams)):
            if value < 1:
                raise UserError(f"head.{name} must be at least 1, got {value}")
        self.counted = tuple(metrics)
        self.major = follow
        self.mode = "min" if follow == "perplexity" else "max"
        self.max_new_tokens = max_new_tokens
        self.beams = beams
        self._detokenizer: Detokenizer | None = None

    def read_as(self, detokenizer: Detokenizer) -> None:
        """Remember how tokens become texts, and which of them end one."""
        self._detokenizer = detokenizer

    @property
    def detokenizer(self) -> Detokenizer:
        """How the data turns tokens into texts."""
        if self._detokenizer is None:
            raise UserError(
                "TextGeneration needs data with texts to write, such as CompletionData, TranslationData or DialogueData"
            )
        return self._detokenizer

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(M, V) logits where there is something to learn; else (R, N) the tokens that were written, then -1."""
        if "targets" in batch.labels:
            return super().forward(hidden, batch)
        written = self.write(batch)
        longest = max(map(len, written))
        return torch.tensor([[*ids, *[_NONE] * (longest - len(ids))] for ids in written], dtype=torch.long)

    def write(self, batch: Batch) -> list[list[int]]:
        """What follows each beginning, as tokens."""
        how = self.detokenizer
        options: dict[str, Any] = {"num_beams": self.beams, "do_sample": False}
        return self._backbone[0].generate(
            batch, self.logits, end=how.end, pad=how.pad, max_new_tokens=self.max_new_tokens, **options
        )

    def evaluate(self, hidden: Hidden, batch: Batch, *, final: bool = False) -> tuple[Loss, tuple[Any, ...]]:
        """The loss and what it counts; in a test, or where a metric of texts is followed, the texts too."""
        loss, counted = super().evaluate(hidden, batch)
        texts: tuple[Any, ...] = ()
        if self.counted and (final or self.major != "perplexity"):
            written = self.detokenizer.decode(self.write(beginnings(batch)))
            texts = (written, list(batch.texts["reference"]), list(batch.texts["prompt"]))
        return loss, (*counted, *texts)

    def metrics(self) -> Metric:
        """Perplexity and accuracy, and the metrics of texts once some were written."""
        return GenerationMetrics(self.counted, self._language)

    def _language(self) -> str:
        return "en" if self._detokenizer is None else self._detokenizer.language

    def asking(self, batch: Batch) -> Batch:
        """With the last cell of each sequence to be told, so that `forward` gives logits of the next token there."""
        last_B = batch.starts + batch.lengths - 1
        return replace(batch, labels={"positions": last_B, "targets": torch.zeros_like(last_B)})

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """What was written; the data knows it as text. Of logits, what comes next."""
        if logits.is_floating_point():
            return super().decode(logits, batch)
        rows = zip(batch.row_index.tolist(), logits.tolist(), strict=True)
        return [GeneratedPrediction(index, "", tuple(t for t in ids if t != _NONE)) for index, ids in rows]


def beginnings(batch: Batch) -> Batch:
    """A flat batch of what stands before the last text to write, its first `prompts` tokens of each sequence."""
    lengths = batch.labels["prompts"]
    kept = batch.position_ids < lengths[batch.segments]
    return replace(
        batch,
        input_ids=batch.input_ids[kept],
        position_ids=batch.position_ids[kept],
        segments=batch.segments[kept],
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        valid=None,
        labels={},
        texts={},
    )


class GenerationMetrics(Metric):
    """What `LanguageModelMetrics` counts, and of written texts what `GeneratedTexts` does.

    Args:
        names: the metrics of texts.
        language: says the language of the texts, when they are counted.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], language: Callable[[], str]) -> None:
        super().__init__()
        self.language = language
        self.tokens = LanguageModelMetrics()
        self.texts = GeneratedTexts(names)

    def update(self, nll: Tensor, right: Tensor, text_bytes: Tensor | None = None, *texts: Sequence[str]) -> None:
        """Count one batch.

        Args:
            nll: (M,) negative log-likelihoods in nats.
            right: (M,) whether the most probable token is right.
            text_bytes: (R,) bytes of text, or None.
            *texts: R texts written, the right ones, and the prompts; none where no texts were written.
        """
        self.tokens.update(nll, right, text_bytes)
        self.texts.update(*(texts or ((), ())))

    def compute(self) -> dict[str, Tensor]:
        """All numbers by name; those of texts only where some were written."""
        self.texts.language = self.language()
        return {**self.tokens.compute(), **self.texts.compute()}

    def reset(self) -> None:
        """Forget all."""
        super().reset()
        self.tokens.reset()
        self.texts.reset()
