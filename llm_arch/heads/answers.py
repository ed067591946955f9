"""Answers cut out of texts: when two count as the same, and a metric that can tune when to leave a question unanswered.

Legend: R rows of a batch, N rows counted so far.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from llm_arch.data.words import split

# What stands before nouns and says nothing of them. Other languages keep all their words.
_ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "es": "un una unos unas el la los las",
    "fr": "un une des le la les",
    "it": "un uno una il lo la i gli le",
    "nl": "een de het",
    "pt": "um uma uns umas o a os as",
}
_UNSPACED = ("zh", "ja", "th", "lo", "km", "my")


def normalised(text: str, language: str = "en") -> list[str]:
    """The words of an answer that count: in lower case, without punctuation and articles.

    In English this is what the SQuAD script does (Rajpurkar et al. 2016), which knows ASCII punctuation only. In other
    languages all of Unicode's punctuation goes, and the language's own articles (Lewis et al. 2020). In Chinese,
    Japanese, Thai, Lao, Khmer and Burmese, which put no spaces between words, each character counts as a word.

    Args:
        text: the answer.
        language: its code, such as en, or zh-TW.
    """
    language = re.split("[-_]", language.lower())[0]
    kept = "".join(c for c in text.lower() if not _punctuation(c, language))
    if language in _ARTICLES:
        kept = re.sub(rf"\b({_ARTICLES[language].replace(' ', '|')})\b", " ", kept)
    return [kept[start:end] for start, end in split(kept)] if language in _UNSPACED else kept.split()


def _punctuation(character: str, language: str) -> bool:
    return character in string.punctuation or (language != "en" and unicodedata.category(character)[0] == "P")


def agreement(answer: str, right: Sequence[str], language: str = "en") -> tuple[float, float]:
    """Whether an answer is one of the right ones, and the F1 of its words with the one it is most like, in [0, 1].

    Words are compared as bags. No words are right where no words are; so is no answer where there are no right ones.

    Args:
        answer: the answer, or "" for none.
        right: the right answers, none of them where the question has no answer.
        language: their language.
    """
    found = normalised(answer, language)
    counted = [words for words in (normalised(one, language) for one in right) if words] or [[]]
    return max(float(found == words) for words in counted), max(_f1(found, words) for words in counted)


def _f1(found: list[str], right: list[str]) -> float:
    if not (found and right):
        return float(found == right)
    return 2 * (Counter(found) & Counter(right)).total() / (len(found) + len(right))


class AnswerMetrics(Metric):
    """Exact match and F1 of answers, over all rows and over those that have one, as the SQuAD 2.0 script counts them.

    A question counts as left unanswered when its difference is above the threshold: how much more probable no answer is
    than the best span, in log-probability. All rows are kept until `reset`, so that `best_threshold` can be found.

    Attributes:
        threshold: the one that came with the last rows.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # (N, 5): difference, exact match and F1 of the span, both of no answer, and whether there is an answer.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.threshold = 0.0

    def update(
        self,
        spans: Sequence[str],
        difference: Tensor,
        threshold: float,
        answers: Sequence[Sequence[str]],
        languages: Sequence[str],
    ) -> None:
        """Count one batch.

        Args:
            spans: R texts of the best span, whether or not the question is to be left unanswered.
            difference: (R,) log-probability of no answer less that of the span.
            threshold: above which difference a question is left unanswered.
            answers: the right answers of each row.
            languages: the language of each row.
        """
        found = [
            (*agreement(span, right, language), agreement("", right, language)[0], float(len(right) > 0))
            for span, right, language in zip(spans, answers, languages, strict=True)
        ]
        scores = torch.tensor(found, device=self.device).view(-1, 4)
        self.rows.append(torch.cat([difference.detach().float().to(self.device)[:, None], scores], 1))
        self.threshold = threshold

    def _columns(self) -> tuple[Tensor, ...]:
        rows = self.rows if isinstance(self.rows, Tensor) or self.rows else [torch.zeros(0, 5, device=self.device)]
        return dim_zero_cat(rows).unbind(1)

    def compute(self) -> dict[str, Tensor]:
        """`exact_match`, `f1`, `exact_match_answerable` and `f1_answerable`; 0 where nothing is counted."""
        difference, exact, f1, silence, answerable = self._columns()
        answered, has_answer = difference <= self.threshold, answerable > 0
        found: dict[str, Tensor] = {}
        for name, score in (("exact_match", exact), ("f1", f1)):
            score = torch.where(answered, score, silence)
            found |= {name: _mean(score), f"{name}_answerable": _mean(score[has_answer])}
        return found

    def best_threshold(self) -> float:
        """The threshold with the highest F1 on the rows counted so far, halfway between the two rows that it parts.

        Infinite where no row is better left unanswered: every question of such data has an answer.
        """
        difference, _, f1, silence, _ = self._columns()
        if not silence.any():
            return float("inf")
        difference, order = difference.sort()
        gain = (f1 - silence)[order].double().cumsum(0)
        gain_N1 = torch.cat([gain.new_zeros(1), gain])  # by how many rows are answered
        edges = torch.cat([difference[:1] - 1, difference, difference[-1:] + 1])
        parted = edges[:-1] < edges[1:]
        best = int(gain_N1.masked_fill(~parted, float("-inf")).argmax())
        return float((edges[best] + edges[best + 1]) / 2)


def _mean(score: Tensor) -> Tensor:
    return (score.double().sum() / max(1, len(score))).float()
