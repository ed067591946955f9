"""Explanations as a picture, for papers: coloured words in lines, and a bar that says what the colours mean.

Lengths are points, 72 an inch, from the upper left corner.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from llm_arch.interpret.explanation import Explanation
from llm_arch.interpret.pieces import AGAINST, FOR, STRONGEST, Piece, pieces_of
from llm_arch.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

_DPI, _MARGIN, _LONGEST = 200, 10.0, 100.0  # the last in inches
_GREY, _BLACK, _WHITE = "#6b7280", "#111111", (255, 255, 255)


class _Run(NamedTuple):
    """Characters in a row that look alike."""

    text: str
    colour: str = _BLACK
    weight: str = "normal"
    behind: tuple[float, float, float] | None = None


def need_matplotlib() -> None:
    """Raise UserError where no picture can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install 'llm_arch[plots]'") from None


def figure_of(explanations: Explanation | Sequence[Explanation], *, width: float = 7.0, size: float = 11.0) -> Figure:
    """A figure of matplotlib. Letters are not joined as Arabic or Devanagari would need it; a page joins them.

    Args:
        explanations: one, or several below each other.
        width: in inches.
        size: of letters.

    Raises:
        UserError: matplotlib is not installed, there is nothing to draw, or it would be longer than a picture can be.
    """
    need_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    some = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    if not some:
        raise UserError("there is no explanation to draw")
    lines = _Lines(width * 72, size, "".join("".join([one.target, *one.texts, *one.texts.values()]) for one in some))
    for number, one in enumerate(some):
        if number:
            lines.down(size)
        _draw(lines, one)
    height = lines.at + 2.5 * size + _MARGIN
    if height > _LONGEST * 72:
        raise UserError(
            f"the picture would be {height / 72:.0f} inches long and may have {_LONGEST:.0f}; draw fewer or shorter "
            "rows, or take a page (--html)"
        )
    figure = Figure(figsize=(width, height / 72), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width * 72)
    axes.set_ylim(height, 0)
    for x, y, run, wide in lines.drawn:
        if run.behind is not None:
            box = FancyBboxPatch(
                (x, y - size), wide, 1.32 * size, "round,pad=0.4,rounding_size=1.5", facecolor=run.behind, linewidth=0
            )
            axes.add_patch(box)
        font = lines.font(run.weight)
        axes.text(x, y, run.text, fontproperties=font, color=run.colour, va="baseline", parse_math=False)
    _colour_bar(figure, some, (width * 72, height), size)
    return figure


def png_of(explanations: Explanation | Sequence[Explanation], *, width: float = 7.0, size: float = 11.0) -> bytes:
    """The figure as a PNG image; arguments as those of `figure_of`."""
    figure = figure_of(explanations, width=width, size=size)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw(lines: _Lines, one: Explanation) -> None:
    lines.put([_Run(one.target, weight="bold"), _Run(f"  {one.value:.4f}"), _Run(f"  {one.method}", _GREY)])
    for name, pieces in pieces_of(one).items():
        lines.put([_Run(f"{name}  ", _GREY), *map(_run, pieces)])


def _run(piece: Piece) -> _Run:
    behind = None if piece.word is None or not piece.share else _mixed(piece.share)
    return _Run(piece.text, _BLACK if piece.read else _GREY, behind=behind)


def _mixed(share: float) -> tuple[float, float, float]:
    """The colour of a share on white, as red, green and blue in [0, 1]."""
    strength = STRONGEST * abs(share)
    red, green, blue = (
        (p + (c - p) * strength) / 255 for p, c in zip(_WHITE, FOR if share > 0 else AGAINST, strict=True)
    )
    return red, green, blue


def _colour_bar(figure: Figure, some: Sequence[Explanation], of: tuple[float, float], size: float) -> None:
    """At the lower end: for a single row with its numbers, for several in words."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    width, height = of
    largest = max((abs(word.score) for word in some[0].words), default=0.0) or 1.0
    colours = LinearSegmentedColormap.from_list("scores", [_mixed(-1), (1, 1, 1), _mixed(1)])
    place = figure.add_axes((_MARGIN / width, (_MARGIN + 1.1 * size) / height, 0.3, 0.6 * size / height))
    bar = figure.colorbar(ScalarMappable(Normalize(-largest, largest), colours), place, orientation="horizontal")
    ends = ("against", "for") if len(some) > 1 else (f"against −{largest:.3g}", f"for +{largest:.3g}")
    bar.set_ticks([-largest, 0, largest], labels=[ends[0], "0", ends[1]], fontsize=0.75 * size)
    sides: tuple[Literal["left", "center", "right"], ...] = ("left", "center", "right")
    for label, side in zip(bar.ax.get_xticklabels(), sides, strict=True):
        label.set_horizontalalignment(side)
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(length=2, pad=2)


class _Lines:
    """Runs of characters in lines of a width.

    Args:
        width: of the picture.
        size: of letters.
        text: all that will be put, for the fonts that it takes.
    """

    def __init__(self, width: float, size: float, text: str) -> None:
        from matplotlib.backends.backend_agg import RendererAgg

        self.right, self.size = width - _MARGIN, size
        self.families, self.usual, self.unknown = _families(text)
        self._measure = RendererAgg(1, 1, _DPI).get_text_width_height_descent  # letters are fitted to its dots
        self.space = self.wide("n n") - self.wide("nn")
        self.at = _MARGIN  # where the last line ends
        self.drawn: list[tuple[float, float, _Run, float]] = []

    def font(self, weight: str) -> FontProperties:
        from matplotlib.font_manager import FontProperties

        # The others may not have it.
        families = self.families if weight == "normal" else self.families[:1]
        return FontProperties(family=families, weight=weight, size=self.size)

    def wide(self, text: str, weight: str = "normal") -> float:
        return float(self._measure(text, self.font(weight), False)[0]) * 72 / _DPI

    def down(self, length: float) -> None:
        self.at += length

    def put(self, runs: Sequence[_Run]) -> None:
        """Runs one behind the other, in a new line; lines break at white space, or within what is too long."""
        x = _MARGIN
        self.down(1.55 * self.size)
        for group in _groups(runs):
            if isinstance(group, str):
                for character in group:
                    x = _MARGIN if character == "\n" else x + self.space
                    self.down(1.55 * self.size if character == "\n" else 0)
                continue
            shown = [
                run._replace(text="".join("\ufffd" if c in self.unknown else c for c in run.text)) for run in group
            ]
            widths = [self.wide(run.text, run.weight) for run in shown]
            if x > _MARGIN and x + sum(widths) > self.right:
                x = self._next_line()
            for run, width in zip(shown, widths, strict=True):
                for part in [run] if _MARGIN + width <= self.right else [run._replace(text=c) for c in run.text]:
                    own = self.wide(part.text, part.weight)
                    if x > _MARGIN and x + own > self.right:
                        x = self._next_line()
                    self.drawn.append((x, self.at - 0.35 * self.size, part, own))
                    x += own

    def _drawable(self, run: _Run) -> _Run:
        text = "".join("\ufffd" if c in self.unknown else c for c in run.text)
        return run._replace(text=text, weight=run.weight if self.usual >= set(text) else "normal")

    def _next_line(self) -> float:
        self.down(1.55 * self.size)
        return _MARGIN


def _groups(runs: Sequence[_Run]) -> Iterator[list[_Run] | str]:
    """White space, and between it what may not be torn apart."""
    group: list[_Run] = []
    for run in runs:
        for part in re.findall(r"\s+|\S+", run.text) if run.behind is None else [re.sub(r"\s", " ", run.text)]:
            if not part.isspace():
                group.append(run._replace(text=part))
                continue
            if group:
                yield group
            group = []
            yield part
    if group:
        yield group


def _families(text: str) -> tuple[list[str], set[str], set[str]]:
    """Installed fonts that have the characters between them, the usual one first; what that one has, and what none."""
    from matplotlib.font_manager import fontManager, get_font

    def had(path: str) -> set[str]:
        known = get_font(path).get_charmap()
        return {one for one in lacking if ord(one) in known}

    families, lacking = ["DejaVu Sans"], {one for one in text if not one.isspace()} | {" ", "\ufffd"}
    lacking -= (usual := had(fontManager.findfont(families[0])))
    for font in fontManager.ttflist if lacking else []:
        # A font of last resort has all, as boxes.
        if font.name not in families and "Last Resort" not in font.name and (own := had(font.fname)):
            families.append(font.name)
            lacking -= own
    return families, usual, lacking
