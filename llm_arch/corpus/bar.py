"""The progress bar of `prepare`: share of the input, tokens a second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, int], None]


@contextmanager
def bar(total: int, read: int = 0, *, visible: bool = True) -> Iterator[Advance]:
    """Show a bar while the block runs, where a terminal is watching.

    Args:
        total: bytes of input; 0 when unknown.
        read: how many of them were read before.
        visible: False shows nothing.

    Yields:
        A function that takes the bytes of input read so far, and how many tokens were made since its last call.
    """
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("preparing"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    silent = not visible or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent, speed_estimate_period=120) as shown:
        task = shown.add_task("", total=total or None, completed=read, speed="")
        began, made = time.perf_counter(), 0

        def advance(now: int, tokens: int) -> None:
            nonlocal made
            made += tokens
            if not silent:
                rate = made / max(time.perf_counter() - began, 1e-9)
                shown.update(task, completed=now, speed=f"{rate:,.0f} tokens/s")

        yield advance
