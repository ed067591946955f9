"""Integrated gradients beside captum's LayerIntegratedGradients: explanations/s and completeness on SST-2.

    python -m benchmarks.interpret speed --data DIR

The same fine-tuned MiniLM in fp32, the same sentences, targets (the logit of the predicted label) and baseline (mask
tokens between the special ones), on one thread, in turns. captum takes its default of 50 Gauss–Legendre steps, one
sentence at a time and in padded batches; what counts is CPU time. The error is how far scores miss the difference of
both logits, as a share of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor
from transformers import AutoModel

from benchmarks.evaluation_data import load
from benchmarks.explained_models import model, parse
from benchmarks.measure import median_ratio, write_results
from llm_arch.inference.directory import Model
from llm_arch.inference.directory import load as load_model
from llm_arch.interpret import Explainer

_TURN = 20  # sentences
_STEPS = 50
_BATCH = 16  # sentences, of captum
_INTERNAL = 64  # rows that captum runs at a time
Found = list[tuple[float, list[float]]]  # error and scores of the tokens of each sentence


class Captum:
    """The peer, on the same weights in plain transformers."""

    def __init__(self, directory: Path, batch: int) -> None:
        self.ours: Model = load_model(directory)
        self.tokenizer = self.ours.data.tokenizer
        self.backbone = AutoModel.from_pretrained(directory, attn_implementation="sdpa").eval()
        self.classify: Any = self.ours.head.classify
        assert self.ours.head.pooling == "mean"
        for part in (self.backbone, self.classify):
            part.requires_grad_(False)
        self.batch = batch

    def logits(self, ids_BL: Tensor, mask_BL: Tensor, label_B: Tensor) -> Tensor:
        """(B,) logits of labels."""
        hidden_BLD = self.backbone(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        pooled_BD = (hidden_BLD * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdim=True)
        return self.classify(pooled_BD).gather(1, label_B[:, None])[:, 0]

    def __call__(self, texts: Sequence[str]) -> Found:
        """Explain sentences."""
        found: Found = []
        for first in range(0, len(texts), self.batch):
            encoded = self.tokenizer(list(texts[first : first + self.batch]), return_tensors="pt", padding=True)
            ids, mask = encoded["input_ids"], encoded["attention_mask"]
            with torch.no_grad():
                hidden = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                label = self.classify(pooled).argmax(1)
            special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
            nothing = torch.where(special, ids, self.tokenizer.mask_token_id)
            layer = LayerIntegratedGradients(self.logits, self.backbone.get_input_embeddings())
            with torch.enable_grad():
                scores = layer.attribute(
                    ids,
                    baselines=nothing,
                    additional_forward_args=(mask, label),
                    n_steps=_STEPS,
                    internal_batch_size=max(_INTERNAL, _STEPS),
                ).sum(-1)
            with torch.no_grad():
                difference = self.logits(ids, mask, label) - self.logits(nothing, mask, label)
            error = (scores.sum(1) - difference).abs() / difference.abs()
            kept = mask.bool() & ~special
            found += [(float(e), s[k].tolist()) for e, s, k in zip(error, scores, kept, strict=True)]
        return found


def ours(directory: Path, single: bool = False, **settings: Any) -> Callable[[Sequence[str]], Found]:
    """Our side."""
    explainer = Explainer(directory, device="cpu", baseline="mask", **settings)

    def run(texts: Sequence[str]) -> Found:
        several = [one for text in texts for one in explainer(text)] if single else explainer(texts)
        return [(one.error or 0.0, [t.score for word in one.words for t in word.tokens]) for one in several]

    return run


def main(arguments: list[str] | None = None) -> None:
    """Measure all sides in turns of some sentences."""
    options = parse("speed", __doc__, arguments, rows=200)
    root = Path(options.data)
    with tempfile.TemporaryDirectory() as scratch:
        directory = model("sst2", root, options.seed, Path(options.models or scratch), 0.0)
        sides: dict[str, Callable[[Sequence[str]], Found]] = {
            "ours, in batches": ours(directory),
            "ours, in batches, error 0.1 %": ours(directory, error=0.001),
            "ours, one by one": ours(directory, single=True),
            "captum, in batches": Captum(directory, _BATCH),
            "captum, one by one": Captum(directory, 1),
        }
        texts = [row["text"] for row in load("sst2", root)["test"][: options.rows]]
        equal = _largest_difference(
            ours(directory, steps=_STEPS)(texts[:_TURN]), sides["captum, one by one"](texts[:_TURN])
        )
        for side in sides.values():
            side(texts[:2])
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        found: dict[str, Found] = {name: [] for name in sides}
        for turn, first in enumerate(range(0, len(texts), _TURN)):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                start = time.process_time()
                found[name] += sides[name](texts[first : first + _TURN])
                seconds[name].append(time.process_time() - start)
            print(f"{first + _TURN} sentences", flush=True)
    write(seconds, found, equal, options)


def _largest_difference(one: Found, other: Found) -> float:
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) for (_, s), (_, t) in pairs for a, b in zip(s, t, strict=True))


def write(seconds: dict[str, list[float]], found: dict[str, Found], equal: float, options: Any) -> None:
    """Results as json and table."""
    reference = [error for error, _ in found["captum, one by one"]]
    best = min(("captum, in batches", "captum, one by one"), key=lambda name: sum(seconds[name]))
    lines = [
        "| | explanations/s | captum's best / it | captum one by one / it | median error | greatest | under 1 % "
        "| no worse |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in seconds.items():
        errors = [error for error, _ in found[name]]
        no_worse = sum(a <= max(b, 1e-6) for a, b in zip(errors, reference, strict=True)) / len(errors)
        ratios = [median_ratio(seconds[peer], own) for peer in (best, "captum, one by one")]
        lines.append(
            f"| {name} | {len(errors) / sum(own):.2f} | {ratios[0]} | {ratios[1]} | {median(errors):.3%} "
            f"| {max(errors):.2%} | {sum(e < 0.01 for e in errors) / len(errors):.1%} | {no_worse:.1%} |"
        )
    lines += [
        "",
        f"{len(reference)} test sentences of SST-2, MiniLM-L6, fp32, one thread, CPU time, turns of {_TURN} sentences; "
        f"ratios are medians over turns with least and greatest. captum: {_STEPS} steps; in batches: {_BATCH} "
        "sentences. No worse: the share of sentences whose error is no greater than captum's. With equal steps and "
        f"baseline, scores of both differ by at most {equal:.1e}. Target: 10 times as many explanations/s.",
    ]
    payload = {"seconds": seconds, "errors": {n: [e for e, _ in f] for n, f in found.items()}, "equal": equal}
    write_results(
        "interpret_speed", {**payload, "options": vars(options)}, "\n".join(lines), data_directory=options.data
    )
    print("\n".join(lines), flush=True)
