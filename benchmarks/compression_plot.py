"""How fast against how good, of all that was measured: `benchmarks/results/compression.png`.

    python -m benchmarks.compression plot

Draws what `benchmarks.compression joint`, `students` and `benchmarks.pruning structure` wrote, as far as it is there.
Nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.measure import RESULTS
from benchmarks.pruning_structure import RECIPES

Point = tuple[str, float, float]  # a name, times faster, points of change


def results(name: str) -> dict[str, Any]:
    """What a benchmark wrote, by set; of all sets together, else of some of them."""
    found: dict[str, Any] = {}
    for path in (*RESULTS.glob(f"{name}_*.json"), RESULTS / f"{name}.json"):
        if path.is_file():
            found |= json.loads(path.read_text(encoding="utf-8"))["results"]
    return found


def faster(one: dict[str, Any], kind: str) -> float:
    """Mean over the seeds of the median ratios."""
    return mean(ratio["median"] for ratio in one["faster"][kind])


def points(name: str) -> list[Point]:
    """All models of a set."""
    found: list[Point] = [("dense, fp32", 1.0, 0.0)]
    if joint := results("compression_joint").get(name):
        found += [(kind, faster(joint, kind), 100 * joint["change"][kind][0]) for kind in joint["change"]]
    if pruned := results("pruning_structure").get(name):
        found += [(f"pruned, {t}", faster(pruned, t), 100 * pruned["change"][t][0]) for t in RECIPES["one"].targets]
    if students := results("compression_students").get(name):
        for kind in students["faster"]:
            if kind != "dense":
                ways = [way for way in students["change"] if way.partition(",")[0] == kind.partition(",")[0]]
                best = max(ways, key=lambda way: students["change"][way][0])
                found.append((best, faster(students, kind), 100 * students["change"][best][0]))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Draw."""
    argparse.ArgumentParser(
        "python -m benchmarks.compression plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    sets = [name for name in ("trec", "sst2", "wnut17") if len(points(name)) > 1]
    if not sets:
        raise SystemExit("there are no results to draw; run `python -m benchmarks.compression joint` first")
    figure = Figure(figsize=(5.2 * len(sets), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        found = points(name)
        front = sorted(p for p in found if not any(q[1] > p[1] and q[2] >= p[2] for q in found))
        front.sort(key=lambda p: p[1])
        axes.plot([p[1] for p in front], [p[2] for p in front], color="0.75", zorder=1, drawstyle="steps-pre")
        fastest = max(x for _, x, _ in found)
        for label, x, y in found:
            axes.scatter(x, y, zorder=2)
            # Into the picture, from the right end of it to the left; there below the others.
            right = x > fastest**0.9
            where: dict[str, Any] = {"xytext": (-5, -12), "ha": "right"} if right else {"xytext": (5, 4)}
            axes.annotate(label, (x, y), textcoords="offset points", fontsize=8, **where)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(name)
        axes.margins(0.2)
        axes.set_xlabel("times as fast as dense, one row at a time")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("change of the metric in points")
    path = RESULTS / "compression.png"
    figure.savefig(path, dpi=120)
    print(path.relative_to(RESULTS.parent.parent))


if __name__ == "__main__":
    main()
