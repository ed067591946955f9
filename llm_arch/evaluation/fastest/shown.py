"""The ways to run a model as a table, for a terminal and for the card."""

from __future__ import annotations

from llm_arch.evaluation.fastest.ways import Fastest


def section(found: Fastest) -> str:
    """What the card says: a row for each way."""
    lines = [
        "",
        "## The fastest way",
        "",
        f"{found.kept.name}: {found.limit}; timed on {found.timed} rows one by one, from text to "
        f"prediction, on {found.threads} thread{'s' if found.threads > 1 else ''} of {found.cpu}; compared on "
        f"{found.compared} rows.",
        "",
    ]
    table = cells(found)
    lines += [f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])]
    return "\n".join(lines) + "\n"


def cells(found: Fastest) -> list[list[str]]:
    """The table as texts, its heading first."""
    metric = [found.metric] if found.metric else []
    lines = [["way", "MB", "ms a row", "times as fast", *metric, "agreement", "verdict"]]
    for way in found.ways:
        times = found.times(way)
        numbers = [
            "" if way.bytes is None else f"{way.bytes / 1e6:,.1f}",
            "" if way.ms is None else f"{way.ms:.2f}",
            "" if times is None else f"{times:.2f}",
            *(["" if way.value is None else f"{way.value:.4f}"] if metric else []),
            "" if way.agreement is None else f"{way.agreement:.1%}",
        ]
        lines.append([way.name, *numbers, way.verdict])
    return lines
