"""Texts said in other words: translated into another language and back (Sennrich et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_arch.augmentation.base import Method, Request, checked_least
from llm_arch.augmentation.rows import Values
from llm_arch.augmentation.sampling import checked_sampling, sample
from llm_arch.inference.directory import Model
from llm_arch.inference.generator import Generator
from llm_arch.seeding import mix
from llm_arch.types import UserError


class BackTranslation(Method):
    """Two models, one there and one back, for rows whose label is of the whole text.

    Without `temperature` both ways are searched with beams, and a row has one paraphrase. With it the way there is
    sampled (Edunov et al. 2018), which gives as many as are asked for.

    Args:
        there: a model directory that translates into another language, or a loaded `Model`.
        back: one that translates back.
        beams: beams to search with; 1 for none.
        temperature: of sampling on the way there, above 0; None for no sampling.
        top_k: sample among so many of the likeliest tokens; None for all.
        top_p: sample among the likeliest tokens that make up this probability; None for all.
        max_new_tokens: tokens of a text at most.
        batch_size: texts translated at a time.
        device: where to run; None for a GPU if there is one.
        trust: modules outside this package that the models may use.

    Raises:
        UserError: when a model does not generate.
    """

    name = "back-translation"
    keeps_marks = False

    def __init__(
        self,
        there: str | Path | Model,
        back: str | Path | Model,
        *,
        beams: int = 4,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int = 128,
        batch_size: int = 16,
        device: str | None = None,
        trust: tuple[str, ...] = (),
    ) -> None:
        checked_least(beams=beams, max_new_tokens=max_new_tokens, batch_size=batch_size)
        checked_sampling(temperature, top_k, top_p)
        if temperature is None and (top_k, top_p) != (None, None):
            raise UserError("top_k and top_p are of sampling; give a temperature too, such as 1.0, or leave them out")
        self.beams, self.max_new_tokens, self.batch_size = beams, max_new_tokens, batch_size
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.varies = temperature is not None
        self.there = Generator(there, device=device, trust=trust)
        self.back = Generator(back, device=device, trust=trust)

    def __call__(self, requests: Sequence[Request]) -> list[Values | None]:
        """New rows; none where a text comes back empty."""
        texts = [text for request in requests for text in request.row.texts]
        keys = [mix(request.key, i) for request in requests for i in range(len(request.row.texts))]
        abroad = self._there(texts, keys)
        some = [i for i, text in enumerate(abroad) if text.strip()]
        returned = [""] * len(texts)
        for i, text in zip(some, self._searched(self.back, [abroad[i] for i in some]), strict=True):
            returned[i] = text.strip()
        new = iter(returned)
        found: list[Values | None] = []
        for request in requests:
            cells = {passage.column: next(new) for passage in request.row.passages}
            found.append({**request.row.values, **cells} if all(cells.values()) else None)
        return found

    def _there(self, texts: list[str], keys: list[int]) -> list[str]:
        if self.temperature is None:
            return self._searched(self.there, texts)
        return sample(
            self.there,
            texts,
            keys,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            batch_size=self.batch_size,
        )

    def _searched(self, generator: Generator, texts: list[str]) -> list[str]:
        """Translations that a search finds likely; the same text has the same one."""
        distinct = list(dict.fromkeys(texts))
        options = {"num_beams": self.beams, "do_sample": False, "batch_size": self.batch_size}
        found = generator(distinct, max_new_tokens=self.max_new_tokens, **options) if distinct else []
        of = dict(zip(distinct, found, strict=True))
        return [of[text] for text in texts]
