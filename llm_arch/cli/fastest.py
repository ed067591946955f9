"""`llm-arch export --to fastest`: every way to run a model, measured here, and the fastest that keeps the quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llm_arch import model_directory
from llm_arch.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from llm_arch.evaluation.fastest import Fastest

OWN = ("points", "runtimes", "threads", "seconds")


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, and write what is kept.

    Args:
        options: of `llm-arch export`.
    """
    if options.int8 or options.half:
        raise UserError("--to fastest tries every precision by itself; leave --int8 and --half out")
    if not options.data:
        raise UserError("--to fastest measures on rows of yours; name a file with --data, best one with labels")
    home = model_directory.home(Path(options.model))
    model_directory.read(home)
    from llm_arch.cli.quiet import quiet

    quiet()
    from llm_arch.cli import tables
    from llm_arch.cli.progress import progress
    from llm_arch.evaluation.fastest import fastest

    folder = options.folder or str(home.resolve().with_name(f"{home.resolve().name}-fastest"))
    given = {name: getattr(options, name) for name in OWN if getattr(options, name) is not None}
    with progress() as advance:
        found = fastest(
            home,
            options.data,
            folder,
            agreement=options.agreement,
            trust=tuple(options.trust),
            advance=advance,
            **given,
        )
    _say(tables.console(), found, folder)


def _say(console: Console, found: Fastest, folder: str) -> None:
    from llm_arch.cli import tables
    from llm_arch.evaluation.fastest.shown import cells

    head, *rest = cells(found)
    table = tables.table()
    for name in head:
        table.add_column(name, justify="left" if name in ("way", "verdict") else "right", overflow="fold")
    for row in rest:
        table.add_row(*row)
    console.print(table)
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    console.print(
        f"limit: {found.limit}; {found.timed} rows timed one by one, from text to prediction, on {threads} of "
        f"{found.cpu}; {found.compared} compared",
        highlight=False,
    )
    times = found.times(found.kept)
    print(f"kept: {found.kept.name}, {times:.2f} times as fast as the model as it is")
    print(f"written: {folder}; use it as any model: llm-arch predict --model {folder}")
