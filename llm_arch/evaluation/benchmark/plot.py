"""The models as points: how fast against how good."""

from __future__ import annotations

import io
from collections.abc import Sequence

from llm_arch.evaluation.benchmark.measured import Measured, best
from llm_arch.types import UserError


def need_matplotlib() -> None:
    """Raise UserError where the plot could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install 'llm_arch[plots]'") from None


def pareto(found: Sequence[Measured]) -> bytes:
    """A PNG image: speed-up over the first model against the metric, and a line through those that no other beats.

    Args:
        found: models with a metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = {id(one): (one.faster_than(found[0]), float(one.value or 0.0)) for one in found}
    front = [points[id(one)] for one in best(found)]
    axes.plot(*zip(*front, strict=True), color="0.7", zorder=1, drawstyle="steps-pre")
    for one in found:
        axes.scatter(*points[id(one)], zorder=2)
        axes.annotate(one.name, points[id(one)], textcoords="offset points", xytext=(6, 5), fontsize=9)
    axes.margins(0.15)
    axes.set_xlabel(f"times as fast as {found[0].name}, rows at their own lengths")
    axes.set_ylabel(f"{found[0].metric} ({'higher' if found[0].mode == 'max' else 'lower'} is better)")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
