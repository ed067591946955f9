"""A progress bar for long work on rows; silent where nobody is watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


@contextmanager
def progress(what: str, total: int | None = None, *, rate: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs.

    Args:
        what: what is going on.
        total: how many steps there are, or None when unknown.
        rate: say how many steps a second are done too, and how long the rest will take at that rate.

    Yields:
        A function that moves the bar on.
    """
    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
    ]
    columns += [_Rate(), TimeElapsedColumn(), TimeRemainingColumn()] if rate else [TimeElapsedColumn()]
    silent = not console.is_terminal or getattr(rank_zero_only, "rank", 0) not in (0, None)
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """The number, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")
