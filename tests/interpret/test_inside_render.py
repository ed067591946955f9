"""What a terminal shows of the inside of a model, from hand-made numbers."""

from __future__ import annotations

import numpy as np
import pytest

from llm_arch.interpret.inside import Inside, Lens, LensLayer, LensPosition, LensToken, TokenSequence
from llm_arch.interpret.render_inside import lines_of_inside, lines_of_mean

TOKENS = ("[CLS]", "a", "b", "c", "[SEP]")
SPECIAL = (True, False, False, False, True)


def looking(pairs: dict[tuple[int, int], float], heads: int = 1) -> np.ndarray:
    """(H, 5, 5) of the first head; most of all at the special tokens and itself, which are left out."""
    found = np.zeros((heads, 5, 5), np.float32)
    found[:, :, 0] = 0.9
    for pair, weight in pairs.items():
        found[0][pair] = weight
    return found


def shown(inside: Inside, most: int = 10) -> list[str]:
    return [line.plain for line in lines_of_inside(inside, most)]


def test_heads_that_count_most_come_first() -> None:
    attention = (looking({(1, 2): 0.3, (2, 2): 0.8}), looking({(3, 1): 0.2}, 2), np.zeros((0, 5, 5), np.float32))
    sequence = TokenSequence("text", TOKENS, SPECIAL, attention)
    importance = tuple(np.array(one, np.float32) for one in ([0.1], [2.0, 0.5], []))
    lines = shown(Inside(0, (sequence,), importance, None, "label on"))
    assert lines[0] == "  how much each head counts for label on, layer by layer:"
    assert [line.split() for line in lines[1:4]] == [["1", "0.1000"], ["2", "2.0000", "0.5000"], ["3", "no", "heads"]]
    assert lines[5:] == [
        "    layer 2, head 1: c → a 0.20",
        "    layer 2, head 2: a → b 0.00",
        "    layer 1, head 1: a → b 0.30",
    ]
    styles = [
        [span.style.bold or span.style.dim for span in one.spans]
        for one in lines_of_inside(  # type: ignore[union-attr]
            Inside(0, (sequence,), importance, None, "label on")
        )
    ]
    assert styles[1:3] == [[True], [True, False]]
    assert shown(Inside(0, (sequence,)))[1] == "    layer 1, head 1: a → b 0.30"
    assert len(shown(Inside(0, (sequence,)), most=2)) == 3


def test_of_several_sequences_the_strongest_counts() -> None:
    sequences = tuple(
        TokenSequence(f"choice {number}", TOKENS, SPECIAL, (looking({pair: weight}),))
        for number, (pair, weight) in enumerate((((1, 2), 0.3), ((2, 1), 0.7), ((3, 1), 0.1)))
    )
    assert shown(Inside(0, sequences))[1:] == ["    layer 1, head 1: b → a 0.70 (choice 1)"]


def test_nothing_to_look_at() -> None:
    lone = TokenSequence("text", TOKENS[:2], SPECIAL[:2], (np.ones((1, 2, 2), np.float32),))
    assert shown(Inside(0, (lone,))) == []
    assert shown(Inside(0, (TokenSequence("text", TOKENS, SPECIAL),))) == []


@pytest.mark.parametrize("several", [False, True])
def test_the_lens(several: bool) -> None:
    layers = (
        LensLayer((LensToken("x", 0.25), LensToken("[y]", 0.125)), 1.5),
        LensLayer((LensToken("[y]", 1.0), LensToken("x", 0.0)), 0.0),
    )
    sequences = (TokenSequence("window 1", TOKENS, SPECIAL),) * (1 + several)
    lens = Lens("the head H", tuple(LensPosition(int(several), place, layers) for place in (1, 4)))
    lines = shown(Inside(0, sequences, lens=lens), most=1)
    assert lines == [
        "  what each layer would say, through the head H:",
        f"  at token 2{' of window 1' if several else ''}, a:",
        "  embedding  x 0.250  [y] 0.125  (1.50 nats from the last)",
        "    layer 1  [y] 1.000  x 0.000  (0.00 nats from the last)",
        "  1 more tokens; --json has all",
    ]


def test_the_mean_over_rows() -> None:
    rows = [Inside(i, (), (np.array([i, 1.0], np.float32), np.zeros(0, np.float32))) for i in (1, 4)]
    lines = [line.plain for line in lines_of_mean([*rows, Inside(2, ())])]
    assert lines[0] == "  how much each head counts on average over 2 rows, layer by layer:"
    assert [line.split() for line in lines[1:]] == [["1", "2.5000", "1.0000"], ["2", "no", "heads"]]
    assert list(lines_of_mean(rows[:1])) == []
