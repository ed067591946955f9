"""What a person sees of a run: the data, the plan, before and after, and every label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_arch.data.module import DataModule
from llm_arch.data.splits import Split

_LISTED_LABELS = 50


def console() -> Console:
    """Where reports go; wide enough for tables when nobody is watching."""
    made = Console()
    return made if made.is_terminal else Console(width=120)


def data_table(data: DataModule) -> Table:
    """A row a split: rows, lengths, what was cut, and how far the text is from the tokenizer's."""
    table = Table(title="data", title_justify="left")
    for name in ("split", "rows", "tokens a row", "longest", "cut at max_length", "unknown", "tokens a word", "source"):
        table.add_column(name, justify="left" if name in ("split", "source") else "right")
    for split in data.splits.values():
        facts = split.facts
        table.add_row(
            split.name,
            f"{len(split):,}",
            f"{split.lengths.mean():.1f}",
            str(split.lengths.max()),
            f"{facts['truncated']:,} ({facts['truncated'] / facts['rows']:.1%})",
            f"{facts['unknown'] / max(1, facts['tokens']):.2%}",
            f"{facts['tokens'] / max(1, facts['words']):.2f}",
            split.source
            if split.chosen is None
            else f"cut off {split.source}"
            if split.name != "train"
            else split.source,
        )
    return table


def notes(splits: Mapping[str, Split]) -> list[str]:
    """What else is to say about the sources: skipped rows, and what the embedded set remarks."""
    found: dict[str, None] = {}
    for split in splits.values():
        if split.facts["bad_rows"]:
            found[f"{split.source}: {split.facts['bad_rows']:,} bad rows skipped, listed in bad_rows.jsonl"] = None
        found |= dict.fromkeys(split.facts["notes"])
    return list(found)


def plan_line(data: DataModule) -> str:
    """One sentence on the training batches."""
    plan = data.training_plan()
    count = plan.micro_batches()
    tokens = int(plan.cut.lengths.sum())
    return (
        f"plan: {count:,} micro-batches an epoch of {len(plan.cut.lengths) / count:.1f} rows and "
        f"{tokens / count:,.0f} tokens, {data.layout} layout, padding {data.padding_share():.1%} "
        f"(padded to the longest it would be {data.padded_share():.1%})"
    )


def before_after(before: Mapping[str, float] | None, after: Mapping[str, float], split: str) -> Table:
    """The metrics side by side."""
    table = Table(title=f"{split} split", title_justify="left")
    table.add_column("metric")
    if before:
        table.add_column("before", justify="right")
    table.add_column("after" if before else "value", justify="right")
    for name, value in after.items():
        table.add_row(name, *([f"{before[name]:.4f}"] if before else []), f"{value:.4f}")
    return table


def per_label(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Precision, recall and F1 of every label that occurs, the weakest first."""
    seen = {name: row for name, row in report.items() if row["support"]}
    table = Table(title="by label, weakest first", title_justify="left")
    table.add_column("label")
    for name in ("precision", "recall", "f1", "rows"):
        table.add_column(name, justify="right")
    for name, row in sorted(seen.items(), key=lambda item: item[1]["f1"])[:_LISTED_LABELS]:
        numbers = [f"{row[k]:.3f}" for k in ("precision", "recall", "f1")]
        table.add_row(name, *numbers, f"{row['support']:,}")
    if len(seen) > _LISTED_LABELS:
        table.caption = f"{len(seen) - _LISTED_LABELS} better ones not shown; per_label.json has all"
    absent = len(report) - len(seen)
    if absent:
        table.caption = (f"{table.caption}; " if table.caption else "") + f"{absent} labels do not occur in this split"
    return table
