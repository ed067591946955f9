"""Sampled texts, each of which depends on its own key alone.

torch's own sampling draws for a whole batch from one generator, so that a text would depend on its neighbours. Here
each text has noise of its own, added to its logits: the largest sum is a sample of the softmax (Gumbel-max; Maddison et
al. 2014).

Legend: B texts of a batch, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llm_arch.inference.generator import Generator, Prompt
from llm_arch.seeding import mix
from llm_arch.types import UserError


def checked_sampling(temperature: float | None, top_k: int | None, top_p: float | None) -> None:
    """Raise UserError for options out of range."""
    if temperature is not None and temperature <= 0:
        raise UserError(f"temperature must be above 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {top_p}")


def sample(
    generator: Generator,
    prompts: Sequence[Prompt],
    keys: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 16,
) -> list[str]:
    """What follows each prompt. Equal prompts run together; beyond rounding, batches change nothing.

    Args:
        generator: the model.
        prompts: the prompts.
        keys: a number for each, on which what is drawn depends.
        max_new_tokens: tokens to add at most.
        temperature: above 0; below 1 the likeliest tokens are preferred.
        top_k: draw among so many of the likeliest tokens; None for all.
        top_p: draw among the likeliest tokens that make up this probability; None for all.
        batch_size: texts a batch at most.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[repr(prompt)].append(i)
    found = [""] * len(prompts)
    for places in groups.values():
        prompt = prompts[places[0]]
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            steps = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
            if top_k is not None:
                steps.append(TopKLogitsWarper(top_k))
            if top_p is not None and top_p < 1:
                steps.append(TopPLogitsWarper(float(top_p)))
            steps.append(_Noise([keys[i] for i in chosen]))
            options: dict[str, Any] = {"do_sample": False, "logits_processor": steps}
            # One batch of equal prompts stays in the order given, which is that of the keys.
            texts = generator([prompt] * len(chosen), max_new_tokens=max_new_tokens, batch_size=len(chosen), **options)
            for i, text in zip(chosen, texts, strict=True):
                found[i] = text
    return found


class _Noise(LogitsProcessor):
    """Adds Gumbel noise to each text's logits, of its key and the number of the token.

    Args:
        keys: B numbers.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys, self.step = keys, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert len(scores) == len(self.keys)
        noise_BV = torch.empty(scores.shape)
        for row, key in zip(noise_BV, self.keys, strict=True):
            row.exponential_(generator=torch.Generator().manual_seed(mix(key, self.step)))
        self.step += 1
        return scores - noise_BV.log_().to(scores.device)
