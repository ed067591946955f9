"""Tables of `llm-arch explain`: how faithful and how plausible explanations are, and how two models compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_arch.types import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from llm_arch.inference.directory import Model
    from llm_arch.interpret import Comparison, Explanation
    from llm_arch.interpret.faithfulness import Faithfulness
    from llm_arch.interpret.plausibility import Marked

# Their names, and whether more of it is better.
NUMBERS = {
    "comprehensiveness": ("comprehensiveness", "more"),
    "sufficiency": ("sufficiency", "less"),
    "aopc_comprehensiveness": ("AOPC comprehensiveness", "more"),
    "aopc_sufficiency": ("AOPC sufficiency", "less"),
    "tau": ("τ with leave-one-out", "more"),
    "sensitivity": ("sensitivity", "less"),
}


def _table(title: str, *columns: str) -> Table:
    from llm_arch.cli import tables

    table = tables.table(title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def faithfulness_table(explanations: Sequence[Explanation], model: Model) -> Table:
    """How faithful scores are, beside random ones: means over the rows with their confidence intervals."""
    from llm_arch.interpret.interval import interval

    tested = [one.faithfulness for one in explanations if one.faithfulness]
    table = _table(f"faithfulness over {len(tested)} rows (mean, 95 % interval)", "scores", "random", "better is")
    own: list[Faithfulness] = [one.own for one in tested]
    random: list[Faithfulness] = [one.random for one in tested]
    for name, (shown, better) in NUMBERS.items():
        values = [interval(getattr(one, name) for one in side) for side in (own, random)]
        if any(values):
            table.add_row(shown, *("" if value is None else str(value) for value in values), better)
    table.caption = mask_note(model)
    return table


def mask_note(model: Model) -> str:
    """Whether texts without some of their words are like those that the model was trained on."""
    share = model.data.record().get("mask_tokens", 0.0)
    if share:
        return (
            f"of the rows that this model was trained on {share:.0%} had words masked, so it knows texts without them"
        )
    return (
        "this model was not trained on texts with masked words (data.mask_tokens), so what it loses without some may "
        "come of texts that it does not know"
    )


def plausibility_table(explanations: Sequence[Explanation], marked: Sequence[Marked]) -> Table:
    """How far scores agree with what people marked, beside random ones.

    Args:
        explanations: of rows.
        marked: what people marked of each.

    Raises:
        UserError: no row has any marks.
    """
    from llm_arch.interpret.interval import interval
    from llm_arch.interpret.plausibility import plausibility

    shuffled = [np.random.default_rng((0, one.index)).standard_normal(len(one.words)).tolist() for one in explanations]
    own, random = (plausibility(explanations, marked, scores) for scores in (None, shuffled))
    usable = [one for one in own if one is not None]
    if not usable:
        raise UserError("people marked no word of any row, or all of them, so there is nothing to compare scores with")
    title = f"plausibility over {len(usable)} rows of which people marked some words (mean, 95 % interval)"
    table = _table(title, "scores", "random", "better is")
    for name, shown in (("auprc", "AUPRC"), ("f1", "F1 of words")):
        values = [interval(None if one is None else getattr(one, name) for one in side) for side in (own, random)]
        table.add_row(shown, *map(str, values), "more")
    return table


def comparison_table(found: Comparison) -> Table:
    """Two models beside one another."""
    shown: Callable[[Any], str] = lambda one: f"{one:.4f}" if isinstance(one, float) else str(one)  # noqa: E731
    title = f"{found.names[1]} beside {found.names[0]}, {len(found.rows)} rows, {found.method}"
    table = _table(title, "first", "second", "difference")
    for name, of in found.faithfulness.items():
        table.add_row(NUMBERS[name][0], *(shown(one) for one in vars(of).values()))
    if found.calibration is not None:
        table.add_row("calibration error", *(shown(one) for one in vars(found.calibration).values()))
    agree = "" if found.correlation is None else f"rank correlation of words {found.correlation}; "
    table.caption = f"{agree}same prediction of {found.same:.1%} of the rows" + (
        f"; {found.note}" if found.note else ""
    )
    return table


def section(found: Comparison) -> str:
    """The section of a model card."""
    agree = "" if found.correlation is None else f"Rank correlation of the words of a row: {found.correlation}. "
    note = f" {found.note[0].upper()}{found.note[1:]}." if found.note else ""
    lines = [
        "## Explanations",
        "",
        f"Beside `{found.names[0]}`, of the same rows ({len(found.rows)}), by {found.method}. {agree}The same "
        f"prediction of {found.same:.1%} of them.{note}",
        "",
        f"| | `{found.names[0]}` | this model | difference |",
        "|---|---|---|---|",
    ]
    rows: Iterator[tuple[str, Any]] = ((NUMBERS[name][0], of) for name, of in found.faithfulness.items())
    several = [*rows, *([("calibration error", found.calibration)] if found.calibration else [])]
    for name, of in several:
        cells = (f"{one:.4f}" if isinstance(one, float) else str(one) for one in vars(of).values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Means over rows with 95 % intervals."]
    return "\n".join(lines)
