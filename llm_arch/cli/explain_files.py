"""The files that `llm-arch explain` writes, each complete or not there: lines of JSON, a page, a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from llm_arch.cli.sink import binary_sink, sink

if TYPE_CHECKING:
    from llm_arch.interpret import Explanation, Inside

Add = Callable[["Explanation", "Inside | None"], None]
DRAWN = 10  # rows of a picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that name files."""
    parser.add_argument("--json", metavar="FILE", help="write a JSON object for each row here, instead of showing it")
    parser.add_argument("--html", metavar="FILE", help="write a page here, to look at in any browser")
    parser.add_argument(
        "--png", metavar="FILE", help=f"write a picture of the first {DRAWN} rows here (needs llm_arch[plots])"
    )


@contextmanager
def files_of(options: argparse.Namespace, head: str) -> Iterator[Add | None]:
    """What takes each row and what happens inside there; None where no file is asked for.

    Args:
        options: what `add_options` has added, and `model`.
        head: what kind of head the model has.

    Raises:
        UserError: a file can't be written there, or a picture can't be drawn.
    """
    if not (options.json or options.html or options.png):
        yield None
        return
    from llm_arch.interpret.figure import need_matplotlib, png_of
    from llm_arch.interpret.page import Page

    if options.png:
        need_matplotlib()
    page = Page({"model": str(options.model), "head": head})
    drawn: list[Explanation] = []
    count = 0
    with ExitStack() as files:
        lines = files.enter_context(sink(options.json, "--json")) if options.json else None
        html = files.enter_context(sink(options.html, "--html")) if options.html else None
        png = files.enter_context(binary_sink(options.png, "--png")) if options.png else None

        def add(explanation: Explanation, inside: Inside | None) -> None:
            nonlocal count
            count += 1
            if lines is not None:
                found = explanation.to_dict() | ({} if inside is None else {"inside": inside.to_dict()})
                lines.write(json.dumps(found, ensure_ascii=False) + "\n")
            if html is not None:
                page.add(explanation, inside)
            if png is not None and count <= DRAWN:
                drawn.append(explanation)

        yield add
        if html is not None:
            html.write(page.html())
        if png is not None:
            png.write(png_of(drawn))
    if png is not None and count > DRAWN:
        print(f"--png {options.png} shows the first {DRAWN} of {count:,} rows; --html FILE shows all")
