"""A progress bar for what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A bar where a terminal is watching.

    Yields:
        What it is told: what is being done, and which share of it, in [0, 1], is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # It moves only between measurements: a thread of its own would count as the models' time.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task("", total=1.0)

        def advance(what: str, share: float) -> None:
            shown.update(task, description=what, completed=share, refresh=True)

        yield advance
