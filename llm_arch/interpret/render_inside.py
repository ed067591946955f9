"""What happens inside a model, for a terminal: heads that count and where they look, and what each layer would say.

Layers and heads are counted from 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.style import Style
from rich.text import Text

from llm_arch.interpret.head_importance import mean_importance
from llm_arch.interpret.inside import Inside, Lens, LensLayer, Numbers, TokenSequence

_STRONG, _WEAK = 0.5, 0.1  # shares of the largest importance, above which a head is bold, and below which dim


def lines_of_inside(inside: Inside, most: int = 10) -> Iterator[Text]:
    """The lines to print.

    Args:
        inside: of a row.
        most: heads whose strongest look is listed, and positions at which layers say something.
    """
    if inside.importance is not None:
        yield from _importance(f"how much each head counts for {inside.target}, layer by layer", inside.importance)
    yield from _looks(inside, most)
    if inside.lens is not None:
        yield from _lens(inside.lens, inside.sequences, most)


def lines_of_mean(rows: Sequence[Inside]) -> Iterator[Text]:
    """The lines of how much heads count on average; none where there is no more than a row with importance.

    Args:
        rows: whose importance is looked at, and nothing else of them.
    """
    known = [row for row in rows if row.importance is not None]
    if len(known) > 1:
        title = f"how much each head counts on average over {len(known):,} rows, layer by layer"
        yield from _importance(title, mean_importance(known))


def _importance(title: str, layers: Sequence[Numbers]) -> Iterator[Text]:
    largest = max((float(layer.max()) for layer in layers if len(layer)), default=0.0)
    yield Text(f"  {title}:")
    for number, layer in enumerate(layers, start=1):
        line = Text(f"  {number:9}  ")
        for value in layer.tolist():
            style = Style(bold=value > _STRONG * largest, dim=value < _WEAK * largest)
            line.append(f"{value:8.4f}", style)
        yield line if len(layer) else line + Text("no heads")


class _Look(NamedTuple):
    """What a head looks at most; the one that looks harder is larger."""

    strength: float
    layer: int
    head: int
    line: str


def _looks(inside: Inside, most: int) -> Iterator[Text]:
    """Of the heads that count most; without importance, of those that look hardest."""
    several = len(inside.sequences) > 1
    best: dict[tuple[int, int], _Look] = {}
    for sequence in inside.sequences:
        for look in _strongest(sequence, f" ({sequence.name})" if several else ""):
            place = look.layer, look.head
            best[place] = max(look, best.get(place, look))

    def rank(look: _Look) -> float:
        return look.strength if inside.importance is None else float(inside.importance[look.layer][look.head])

    if best:
        yield Text("  where heads look most, but for special tokens, the first token, and the token itself:")
    for look in sorted(best.values(), key=rank, reverse=True)[:most]:
        yield Text(f"    layer {look.layer + 1}, head {look.head + 1}: {look.line}")


def _strongest(sequence: TokenSequence, where: str) -> Iterator[_Look]:
    """The strongest look of each head, if there are two tokens that count."""
    shown = ~np.array(sequence.special)
    shown[:1] = False  # much attention rests on the first token (Xiao et al. 2024), whatever it says
    pairs = shown[:, None] & shown[None] & ~np.eye(len(shown), dtype=bool)
    if not pairs.any():
        return
    for layer, heads in enumerate(sequence.attention or ()):
        for head, weight in enumerate(heads):
            source, goal = np.unravel_index(np.where(pairs, weight, -1.0).argmax(), weight.shape)
            strength = float(weight[source, goal])
            line = f"{sequence.tokens[source]} → {sequence.tokens[goal]} {strength:.2f}{where}"
            yield _Look(strength, layer, head, line)


def _lens(lens: Lens, sequences: tuple[TokenSequence, ...], most: int) -> Iterator[Text]:
    yield Text(f"  what each layer would say, through {lens.through}:")
    for position in lens.positions[:most]:
        sequence = sequences[position.sequence]
        where = f" of {sequence.name}" if len(sequences) > 1 else ""
        yield Text(f"  at token {position.place + 1}{where}, {sequence.tokens[position.place]}:")
        for number, layer in enumerate(position.layers):
            name = f"layer {number}" if number else "embedding"
            yield Text(f"  {name:>9}  {_said(layer)}  ({layer.divergence:.2f} nats from the last)")
    if len(lens.positions) > most:
        yield Text(f"  {len(lens.positions) - most} more tokens; --json has all")


def _said(layer: LensLayer) -> str:
    return "  ".join(f"{token.token} {token.probability:.3f}" for token in layer.tokens)
