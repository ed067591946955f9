"""A run that begins with a whole trained model: with its labels and its head's weights too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from llm_arch import model_directory
from llm_arch.data.module import DataModule
from llm_arch.types import Head, LabelSpace, UserError
from llm_arch.untrusted import check_finite


def labels_of(start: str, data: DataModule) -> LabelSpace:
    """The model's labels in its order, which the data is to read its rows by.

    Args:
        start: a model directory.
        data: the data module; from now on it complains about labels that the model does not know.
    """
    record = model_directory.read(model_directory.home(Path(start)))
    try:
        known = LabelSpace.from_dict(record["label_space"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{start}: its labels can't be read ({type(error).__name__}); fetch the model again") from error
    data.label_space = known  # type: ignore[misc]
    data.labels_from = f"among the labels of {start}"
    return known


def take_head(start: str, head: Head) -> None:
    """Give a new head the weights of a model directory's.

    Args:
        start: the model directory.
        head: the head, bound to its backbone.

    Raises:
        UserError: they are those of another head, or damaged.
    """
    try:
        weights: dict[str, Any] = load_file(model_directory.home(Path(start)) / model_directory.HEAD)
        head.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{start}: the head's weights can't be read; fetch or train the model again") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise UserError(
            f"the head can't begin with that of {start} ({reason}); leave model.head as that model has it"
        ) from error
    check_finite(dict(head.named_parameters()), start)  # a threshold may be infinite
