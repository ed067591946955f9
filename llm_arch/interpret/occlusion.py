"""Occlusion (Zeiler & Fergus 2014; of words: Li et al. 2016): what the number loses when a word is not there.

Legend: R rows, U words or tokens of a row.
"""

from __future__ import annotations

import torch

from llm_arch.interpret.baselines import Replaced, check_baseline
from llm_arch.interpret.method import Attribution, Given, Method
from llm_arch.interpret.replacing import By, Replacing, check_by


class Occlusion(Method):
    """One run for each word or token: its score is the number with it less the number without it.

    Args:
        by: `words` or `tokens`.
        baseline: what comes in its place: the `mask`, `pad`, `unknown` or `end` token, or nothing (`remove`); None for
            the first of these that the tokenizer has.
    """

    name = "occlusion"
    needs = "tokens"

    def __init__(self, *, by: By = "words", baseline: Replaced | None = None) -> None:
        check_by(by)
        check_baseline(baseline, ("mask", "pad", "unknown", "end", "remove"))
        self.by: By = by
        self.baseline = baseline

    def __call__(self, given: Given) -> Attribution:
        """Explain all rows."""
        replacing = Replacing(given, self.by, self.baseline)
        runs: list[tuple[int, list[int]]] = []
        counts = [len(units) for units in replacing.units]
        for row, count in enumerate(counts):
            runs += [(row, []), *((row, [unit]) for unit in range(count))]
        found = replacing([row for row, _ in runs], [gone for _, gone in runs])
        parts = found.split([1 + count for count in counts])
        scores = replacing.scores([part[0] - part[1:] for part in parts])
        settings = [{"by": self.by, "baseline": replacing.baseline}] * len(counts)
        return Attribution(self.by, scores, torch.stack([part[0] for part in parts]), None, settings)
