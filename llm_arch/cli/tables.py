"""What tables of all verbs look like, and where they are printed."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100


def console() -> Console:
    """Where reports go; of a fixed width when nobody is watching."""
    made = Console()
    return made if made.is_terminal else Console(width=WIDTH)


def table(title: str | None = None, **how: Any) -> Table:
    """An empty table.

    Args:
        title: above it.
        **how: what rich's `Table` takes.
    """
    common = {"title_justify": "left", "caption_justify": "left", "pad_edge": False, "collapse_padding": True}
    return Table(title=title, box=box.SIMPLE_HEAD, **{**common, **how})
