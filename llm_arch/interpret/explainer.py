"""Why a model says what it says of rows: the way from a model directory to explanations, in input order.

Legend: T tokens of a batch, R rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_arch.inference.directory import Model
from llm_arch.inference.export.exported import Exported
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret.asked import Wanted, asked, in_batches, rows_of
from llm_arch.interpret.explained_rows import ExplainedRows
from llm_arch.interpret.explanation import Explanation, Explanations
from llm_arch.interpret.faithfulness import FaithfulnessTest
from llm_arch.interpret.function import RowFunction, frozen
from llm_arch.interpret.method import Method, Needs
from llm_arch.types import Batch, UserError

# By name, where each is found; imported only when it is asked for.
METHODS: dict[str, tuple[str, str, Needs]] = {
    "integrated_gradients": ("integrated_gradients", "IntegratedGradients", "gradients"),
    "gradient_x_input": ("gradient_x_input", "GradientXInput", "gradients"),
    "smoothgrad": ("smoothgrad", "SmoothGrad", "gradients"),
    "occlusion": ("occlusion", "Occlusion", "tokens"),
    "shap": ("shap", "Shap", "tokens"),
    "rollout": ("rollout", "Rollout", "attention"),
    "attention_x_gradient": ("rollout", "AttentionXGradient", "attention"),
}
_CHUNK = 256
_SAME = 1e-2  # how far apart numbers of tokens and of their embeddings may be, of their size


class Explainer:
    """Explains what a model says.

    Args:
        model: a model directory, or a loaded `Model`.
        method: name of a method, see `METHODS`.
        special: whether methods with gradients explain special tokens too; else these stay as they are in the baseline,
            and what methods without a baseline give them is told apart from the words.
        device: where to run; None for a GPU if there is one.
        batch_tokens: tokens a run at most.
        trust: modules outside this package that the model may use.
        faithfulness: tests the scores of each row; None to leave it out.
        **settings: those of the method.

    Raises:
        UserError: the method is unknown, lacks a setting, or can't serve this model.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        method: str = "integrated_gradients",
        special: bool = False,
        device: str | None = None,
        batch_tokens: int = 2048,
        trust: tuple[str, ...] = (),
        faithfulness: FaithfulnessTest | None = None,
        **settings: Any,
    ) -> None:
        self.method = method_of(method, settings)
        self.faithfulness = faithfulness
        self.predictor = Predictor(model, device=device, batch_tokens=batch_tokens, trust=trust)
        self.model, self.special = self.predictor.model, special
        self._check_model()

    def _check_model(self) -> None:
        name, needs = self.method.name, self.method.needs
        if self.special and needs != "gradients":
            raise UserError(
                f"special tokens are explained by methods with gradients, and {name} has none; leave it out"
            )
        if reason := unserved(self.model, name):
            raise UserError(reason)

    def __call__(
        self,
        rows: Iterable[Mapping[str, Any] | str] | Mapping[str, Any] | str,
        *,
        target: str | None = None,
        against: str | None = None,
    ) -> Explanations:
        """Explanations of texts or rows, as those of `stream`; a single one is taken as a list of one."""
        return Explanations(self.stream(rows_of(self.model, rows), target=target, against=against))

    def stream(
        self, rows: Iterable[Mapping[str, Any]], *, target: Wanted = None, against: str | None = None
    ) -> Iterator[Explanation]:
        """Explanations of rows, one after another in input order; memory does not grow with their number.

        Args:
            rows: mappings with the columns that the model was trained on.
            target: what to explain, in the terms of the head's `target`, of all rows or of each; None for what the
                model predicts.
            against: what else could have been; the difference is explained.

        Raises:
            UserError: for a row that can't be used or has no such target, naming its number.
        """

        def explained(batch: Batch, values: Sequence[Mapping[str, Any]]) -> list[Explanation]:
            return self._batch(batch, values, (target, against))

        return in_batches(self.predictor, rows, explained, _CHUNK)

    def _batch(
        self, batch: Batch, values: Sequence[Mapping[str, Any]], wanted: tuple[Wanted, str | None]
    ) -> list[Explanation]:
        backbone, head = self.model.backbone, self.model.head
        rows = ExplainedRows(self.model.data, values, batch)
        with frozen(backbone, head):
            batch = head.asking(batch)
            targets, said_R = asked(self.model, batch, rows, values, *wanted)
            function = RowFunction(backbone, head, batch, targets, self.predictor.batch_tokens)
            given = rows.given(function, self.special)
            attribution = self.method(given)
            if not torch.allclose(attribution.value_R, said_R, rtol=_SAME, atol=_SAME):
                raise UserError(
                    f"{type(backbone).__name__} computes another number from embeddings than from tokens, so gradients "
                    f"say nothing of it; take {_that_need('tokens')}"
                )
            found = rows.explanations(targets, attribution, self.method)
            if self.faithfulness is None:
                return found

            def again() -> list[Tensor]:
                return _scores(rows.explanations(targets, self.method(given), self.method))

            tested = self.faithfulness(given, _scores(found), again, [one.index for one in found])
        return [replace(one, faithfulness=test) for one, test in zip(found, tested, strict=True)]


def _scores(explanations: Sequence[Explanation]) -> list[Tensor]:
    return [torch.tensor([word.score for word in one.words], dtype=torch.float64) for one in explanations]


def explain(
    model: str | Path | Model,
    rows: Iterable[Mapping[str, Any] | str] | Mapping[str, Any] | str,
    *,
    method: str = "integrated_gradients",
    target: str | None = None,
    against: str | None = None,
    **options: Any,
) -> Explanations:
    """Why a model says what it says of texts or rows.

    Args:
        model: a model directory, or a loaded `Model`.
        rows: texts, or mappings with the columns that the model was trained on; or a single one.
        method: name of a method, see `METHODS`.
        target: what to explain, such as a label; None for what the model predicts.
        against: what else could have been; the difference is explained.
        **options: those of `Explainer`, and the settings of the method.
    """
    return Explainer(model, method=method, **options)(rows, target=target, against=against)


def unserved(model: Model, name: str) -> str | None:
    """Why a method can't serve a model, as a sentence that names those that can; None where it can."""
    backbone, needs = model.backbone, METHODS[name][2]
    if isinstance(backbone, Exported) and needs != "tokens":
        return (
            f"{model.directory} is exported and has neither gradients nor attention, which {name} needs; "
            f"take {_that_need('tokens')}, or the model that it was exported from"
        )
    if needs == "attention" and not hasattr(backbone, "attentions"):
        return (
            f"{type(backbone).__name__} has no attention, which {name} needs; take {_that_need('gradients', 'tokens')}"
        )
    return None


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of that name with these settings.

    Raises:
        UserError: there is no such method or setting.
    """
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; take one of {', '.join(METHODS)}")
    module, kind, _ = METHODS[name]
    found = getattr(import_module(f"llm_arch.interpret.{module}"), kind)
    known = [] if found.__init__ is object.__init__ else [*inspect.signature(found).parameters]
    if strange := [one for one in settings if one not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"{name} has no setting {strange[0]!r}; {has}")
    made = found(**settings)
    assert isinstance(made, Method)
    return made


def _that_need(*needs: str) -> str:
    names = [name for need in needs for name, (_, _, own) in METHODS.items() if own == need]
    return " or ".join([", ".join(names[:-1]), names[-1]])
