"""`llm-arch explain --compare`: whether two models say the same for the same reasons."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llm_arch import model_directory
from llm_arch.cli.sink import sink
from llm_arch.types import UserError

_SHOWN = 3  # of the rows whose explanations changed most
_WORDS = 5  # whose scores are listed of each
_OF_ONE = ("runtime", "special", "attention", "lens", "faithfulness", "rationales", "html", "png")


def compare(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Compare two models, say how they differ, and write it into the second's record and card.

    Args:
        options: of the verb.
        settings: of the method.
    """
    first, second = _directories(options)
    from llm_arch.cli.explain_scores import comparison_table, section
    from llm_arch.cli.progress import progress
    from llm_arch.cli.rows import rows_of, with_line
    from llm_arch.inference.directory import load
    from llm_arch.interpret import FaithfulnessTest
    from llm_arch.interpret import compare as compare_models

    trust = tuple(options.trust)
    one, other = (load(name, trust=trust) for name in (first, second))
    rows = dict(enumerate(rows_of(one.data.source(options.input))))
    try:
        with progress() as advance:
            found = compare_models(
                one,
                other,
                [dict(row.values) for row in rows.values()],
                method=options.method,
                target=options.target,
                against=options.against,
                faithfulness=FaithfulnessTest(),
                advance=lambda share: advance("explaining by both", share),
                **settings,
            )
    except UserError as error:
        raise UserError(with_line(str(error), options.input, rows)) from error
    from rich.console import Console

    from llm_arch.interpret.render import lines_of

    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    console.print(comparison_table(found))
    console.print("changed most:", style="bold")
    for row in found.rows[:_SHOWN]:
        console.print(f"rank correlation {'none' if row.correlation is None else f'{row.correlation:+.3f}'}")
        for name, explained in zip(found.names, (row.first, row.second), strict=True):
            console.print(f"{name}, which predicts {explained.predicted}:")
            for line in lines_of(explained, _WORDS):
                console.print(line)
    if options.json:
        with sink(options.json, "--json") as file:
            changed = [
                {"correlation": row.correlation, "first": row.first.to_dict(), "second": row.second.to_dict()}
                for row in found.rows
            ]
            file.write(json.dumps({**found.to_dict(), "changed": changed}, ensure_ascii=False) + "\n")
    model_directory.amend(second, "explanations", {"data": options.input, **found.to_dict()}, section(found))
    console.print(f"written into {second / model_directory.RECORD} and {second / model_directory.CARD}")


def _directories(options: argparse.Namespace) -> tuple[Path, Path]:
    if options.model:
        raise UserError("--compare names both models; leave --model out")
    if not options.input:
        raise UserError("--compare needs rows, and the more the better; give a file with --input")
    for name in _OF_ONE:
        if getattr(options, name):
            raise UserError(f"--{name} is about one model; leave it out with --compare")
    first, second = (model_directory.home(Path(name)) for name in options.compare)
    for home in (first, second):
        model_directory.read(home)
        if options.check:
            model_directory.check_manifest(home)
    if first.resolve() == second.resolve():
        raise UserError(f"--compare names {second} twice; name two models")
    return first, second
