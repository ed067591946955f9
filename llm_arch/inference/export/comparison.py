"""How near an exported model is to the one it is of, on rows that both predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_arch.inference.directory import Model
from llm_arch.inference.export.runtime import Precision
from llm_arch.inference.predictor import Predictor
from llm_arch.types import Batch, Prediction, UserError

Row = Mapping[str, Any]

FP32_LIMIT = 1e-4
_BATCH_TOKENS = 256  # so that rows are compared in batches of several sizes
_NUMBER_LIMIT = 0.1  # standard deviations that a predicted number may move and still agree
# What of a prediction are probabilities, or spans that were not chosen.
_SHADES = {"score", "scores", "null_score", "alternatives"}


@dataclass(frozen=True)
class Comparison:
    """How near an exported model is to the one it was exported from.

    Attributes:
        rows: on how many rows.
        difference: largest difference of their logits.
        relative: the same over the largest logit, where that is above 1.
        agreement: share of the rows with the same prediction, probabilities aside.
        bytes_before: of the weights of the model that was exported.
        bytes: of the graph.
    """

    rows: int
    difference: float
    relative: float
    agreement: float
    bytes_before: int
    bytes: int


class Answers(NamedTuple):
    """What a model says of rows.

    Attributes:
        predictions: of the rows, as `Predictor` makes them.
        logits: flattened, batch after batch.
        batches: that they came of.
    """

    predictions: list[Prediction]
    logits: Tensor
    batches: list[Batch]


def answers(model: Model, rows: Sequence[Row]) -> Answers:
    """What a model says of rows, on the CPU.

    Args:
        model: in eval mode.
        rows: at least one.
    """
    logits: list[Tensor] = []
    batches: list[Batch] = []

    def see(head: nn.Module, given: tuple[Any, ...], found: Tensor) -> None:
        logits.append(found.detach().float().flatten())
        batches.append(given[1])

    hook = model.head.register_forward_hook(see)
    try:
        predictions = list(Predictor(model, device="cpu", batch_tokens=_BATCH_TOKENS).stream(rows))
    finally:
        hook.remove()
    return Answers(predictions, torch.cat(logits), batches)


@contextmanager
def plain_fp32() -> Iterator[None]:
    """fp32 products as they are, whatever this process takes elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compared(before: Answers, after: Answers, unit: float, bytes_before: int, bytes_: int) -> Comparison:
    """Compare what two models say of the same rows.

    Args:
        before: what the model says.
        after: what the exported one says.
        unit: standard deviation of predicted numbers; 1 where there are none.
        bytes_before: of the model's weights.
        bytes_: of the exported one's.

    Raises:
        UserError: they do not give as many logits.
    """
    wanted, got = before.logits, after.logits
    if wanted.shape != got.shape:
        raise UserError(f"the exported graph gives {len(got)} logits where the model gives {len(wanted)}")
    difference = float((wanted - got).abs().max()) if len(wanted) else 0.0
    largest = float(wanted.abs().max()) if len(wanted) else 0.0
    return Comparison(
        rows=len(before.predictions),
        difference=difference,
        relative=difference / max(1.0, largest),
        agreement=agreement(before.predictions, after.predictions, unit),
        bytes_before=bytes_before,
        bytes=bytes_,
    )


def agreement(before: Sequence[Prediction], after: Sequence[Prediction], unit: float) -> float:
    """Share of the rows of which two models say the same, probabilities aside, in [0, 1].

    Args:
        before: what one says.
        after: what the other says of the same rows.
        unit: standard deviation of predicted numbers; 1 where there are none.
    """
    same = sum(_alike(one.to_dict(), other.to_dict(), unit) for one, other in zip(before, after, strict=True))
    return same / len(before)


def unit_of(head: nn.Module) -> float:
    """The standard deviation of the numbers that a head predicts; 1 where it predicts none."""
    return float(getattr(head, "deviation", 1.0))


def _alike(one: Any, other: Any, unit: float) -> bool:
    """Whether two predictions say the same, probabilities aside."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() - _SHADES
        return names == other.keys() - _SHADES and all(_alike(one[k], other[k], unit) for k in names)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(a, b, unit) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _NUMBER_LIMIT * unit
    return bool(one == other)


def check(found: Comparison, precision: Precision, agreement: float, directory: Path) -> None:
    """Refuse what is too far from the model.

    Args:
        found: how near it is.
        precision: its precision; in fp32 logits must be the same.
        agreement: share of the rows that must be predicted alike otherwise.
        directory: where it was to go.

    Raises:
        UserError: it is too far.
    """
    if precision == "fp32" and not found.relative <= FP32_LIMIT:  # `not`, for NaN
        raise UserError(
            f"the exported model's logits differ by up to {found.difference:.2g} from the model's, more than "
            f"{FP32_LIMIT:g}; {directory} was not written"
        )
    if precision != "fp32" and not found.agreement >= agreement:
        raise UserError(
            f"in {precision} {found.agreement:.1%} of {found.rows} rows are predicted as before, and "
            f"{agreement:.1%} must be; {directory} was not written. Give rows of your own with --data, lower "
            "--agreement, or export in fp32"
        )
